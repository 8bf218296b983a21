"""A cold start with nothing prewarmed, compared with Docker's own create, start and wait with network none."""

from __future__ import annotations

from benchmarks.docker_runs import CODE, DockerRun, connect, options
from benchmarks.figures import Goal, Measured, Samples, p95_ratio, ratio
from benchmarks.pooled import ground
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.turns import in_turn

TITLE = "cold start, nothing prewarmed"
COLD = "nanogrid, cold"
DOCKER = "docker create, start, wait"
WARM_UP = 2


def measure(setting: Setting) -> Measured:
    """Hello world to its output. Every cold run has its own code, and its container stays idle afterwards."""
    rounds, folder = setting.rounds(50), HELLO.write(setting.folder / "host")
    with ground(setting.settings(), setting.folder) as here:
        functions = iter([here.function(HELLO.variation(number)) for number in range(rounds + WARM_UP)])

        def in_the_child() -> dict[str, Samples]:
            api = connect(here.settings)
            run = DockerRun(
                api, options(here.settings.python_image, ["python3", f"{CODE}/main.py"], folder, here.settings), HELLO
            )
            variants = {COLD: lambda: next(functions).expect("cold"), DOCKER: run.create_start_wait}
            return in_turn(setting.row, variants, rounds=rounds, warm_up=WARM_UP)

        samples = here.in_child(in_the_child)
    cold, docker = samples[COLD], samples[DOCKER]
    lines = (ratio("median of docker", cold, docker, Goal(0.6)), p95_ratio("p95 of docker's median", cold, docker))
    return Measured(setting.row, TITLE, (cold, docker), lines)
