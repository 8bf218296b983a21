"""The first run of new code, in a prewarmed container. The code is already on this host's disk."""

from __future__ import annotations

from benchmarks.figures import Goal, Measured, Samples, p95_ratio, ratio
from benchmarks.host import BareRun
from benchmarks.pooled import ground
from benchmarks.programs import HELLO
from benchmarks.rows.warm_python import BARE
from benchmarks.setting import Setting
from benchmarks.turns import in_turn, timed

TITLE = "first run of unseen code in a prewarmed container, code already on disk"
FIRST = "nanogrid, first run, prewarmed"
WARM_UP = 3


def measure(setting: Setting) -> Measured:
    """Each round has its own code, on both sides; each run begins when the prewarmed container is paused."""
    rounds, python = setting.rounds(50), setting.bare_python
    settings = setting.settings(pause_after_s=0.02)
    with ground(settings, setting.folder, prewarm=["python"]) as here:
        programs = [HELLO.variation(number) for number in range(rounds + WARM_UP)]
        functions = iter([here.function(program) for program in programs])
        bare = iter(
            [
                BareRun([str(python), "main.py"], program, program.write(setting.folder / "host" / str(number)))
                for number, program in enumerate(programs)
            ]
        )

        def first_run() -> float:
            here.wait_for_prewarmed(paused=True)
            return next(functions).expect("prewarmed")

        def bare_run() -> float | None:
            here.wait_for_prewarmed(paused=True)
            return timed(next(bare))

        def in_the_child() -> dict[str, Samples]:
            return in_turn(setting.row, {FIRST: first_run, BARE: bare_run}, rounds=rounds, warm_up=WARM_UP)

        samples = here.in_child(in_the_child)
    first, plain = samples[FIRST], samples[BARE]
    lines = (ratio("median of bare", first, plain, Goal(0.5)), p95_ratio("p95 of the bare median", first, plain))
    return Measured(setting.row, TITLE, (first, plain), lines, tuple(setting.notes))
