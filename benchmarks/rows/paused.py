"""Hello world in a container that was paused while idle: the case of the first request after an idle time."""

from __future__ import annotations

from benchmarks.figures import Measured, Samples, p95_ratio, ratio
from benchmarks.host import BareRun
from benchmarks.pooled import ground
from benchmarks.programs import HELLO
from benchmarks.rows.warm_python import BARE
from benchmarks.setting import Setting
from benchmarks.turns import in_turn

TITLE = "hello world in a warm container that was paused"
PAUSED = "nanogrid, warm, paused"


def measure(setting: Setting) -> Measured:
    """For information: the issue's goals are for `hello`."""
    folder, python = HELLO.write(setting.folder / "host"), setting.bare_python
    with ground(setting.settings(pause_after_s=0.05), setting.folder) as here:
        function = here.function(HELLO)

        def paused_run() -> float:
            here.wait_until_paused(function.container_id)
            return function.expect("warm")

        def in_the_child() -> dict[str, Samples]:
            function.warm_up()
            bare = BareRun([str(python), "main.py"], HELLO, folder)
            return in_turn(setting.row, {PAUSED: paused_run, BARE: bare}, rounds=setting.rounds(50))

        samples = here.in_child(in_the_child)
    warm, bare = samples[PAUSED], samples[BARE]
    lines = (ratio("median of bare", warm, bare), p95_ratio("p95 of the bare median", warm, bare))
    return Measured(setting.row, TITLE, (warm, bare), lines, tuple(setting.notes))
