"""Runs a second with two at a time on one host: warm, as bare processes, and by docker exec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import at_a_time
from benchmarks.docker_runs import CODE
from benchmarks.figures import Goal, Measured, Samples, ratio
from benchmarks.host import BareRun
from benchmarks.pooled import Ground, ground
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.turns import Progress

TITLE = "throughput of warm hello runs, 2 children on one host"
WARM = "nanogrid, 2 children"
BARE = "bare subprocess, 2 processes"
EXEC = "docker exec, 2 threads"
COMMAND = ["python3", f"{CODE}/main.py"]


def measure(setting: Setting) -> Measured:
    """Each round lets every variant run for a while, one after the other."""
    rounds, seconds = setting.rounds(50) // 5, 0.5 if setting.quick else 2.0
    folder, python = HELLO.write(setting.folder / "host"), setting.bare_python
    values: dict[str, list[float]] = {WARM: [], BARE: [], EXEC: []}
    progress = Progress(setting.row, rounds)
    with ground(setting.settings(), setting.folder) as here:
        function = here.function(HELLO)
        variants: dict[str, Callable[[], float]] = {
            WARM: lambda: at_a_time.warm(here, function, seconds),
            BARE: lambda: _bare(here, python, folder, seconds),
            EXEC: lambda: at_a_time.docker_exec(here, HELLO, COMMAND, folder, seconds),
        }
        for done in range(rounds):
            for name, variant in variants.items():
                values[name].append(variant())
            progress.at(done)
    warm, bare, docker = (Samples(name, "runs/s", tuple(found)) for name, found in values.items())
    lines = (
        ratio("of bare subprocess", warm, bare, Goal(2.5, at_least=True)),
        ratio("of docker exec", warm, docker, Goal(15, at_least=True)),
    )
    return Measured(setting.row, TITLE, (warm, bare, docker), lines, tuple(setting.notes))


def _bare(here: Ground, python: Path, folder: Path, seconds: float) -> float:
    def work() -> float:
        run = BareRun([str(python), "main.py"], HELLO, folder)
        run()
        return at_a_time.per_second(run, seconds)

    return sum(here.in_children([work] * at_a_time.AT_A_TIME))
