"""Hello world by NanoGrid, by `docker exec` and by `docker run`, all through the API. For information."""

from __future__ import annotations

from benchmarks.docker_runs import CODE, DockerExec, DockerRun, connect, options, sleeping
from benchmarks.figures import Measured, Samples, ratio
from benchmarks.host import BareRun
from benchmarks.pooled import ground
from benchmarks.programs import HELLO
from benchmarks.rows.warm_python import BARE, WARM
from benchmarks.setting import Setting
from benchmarks.turns import Variant, in_turn

TITLE = "hello world by docker exec and docker run, through the API"
EXEC = "docker exec, not paused"
RUN = "docker run (create, start, wait, logs, remove)"
COMMAND = ["python3", f"{CODE}/main.py"]


def measure(setting: Setting) -> Measured:
    """Medians as multiples of bare, and of a warm run."""
    folder, python = HELLO.write(setting.folder / "host"), setting.bare_python
    with ground(setting.settings(), setting.folder) as here:
        function = here.function(HELLO)

        def in_the_child() -> dict[str, Samples]:
            function.warm_up()
            api = connect(here.settings)
            body = options(here.settings.python_image, COMMAND, folder, here.settings)
            with sleeping(api, body) as container:
                variants: dict[str, Variant] = {
                    WARM: lambda: function.expect("warm"),
                    BARE: BareRun([str(python), "main.py"], HELLO, folder),
                    EXEC: DockerExec(api, container, COMMAND, HELLO),
                    RUN: DockerRun(api, body, HELLO),
                }
                return in_turn(setting.row, variants, rounds=setting.rounds(50))

        samples = here.in_child(in_the_child)
    lines = (
        ratio("docker exec, of bare", samples[EXEC], samples[BARE]),
        ratio("docker run, of bare", samples[RUN], samples[BARE]),
        ratio("docker exec, of a warm run", samples[EXEC], samples[WARM]),
        ratio("docker run, of a warm run", samples[RUN], samples[WARM]),
    )
    return Measured(setting.row, TITLE, tuple(samples.values()), lines, tuple(setting.notes))
