"""C++: a run.sh that compiles main.cpp and runs it, unchanged. Its first run compared with a later one."""

from __future__ import annotations

from benchmarks.figures import Goal, Measured, Samples, p95_ratio, ratio
from benchmarks.pooled import ground
from benchmarks.programs import COMPILED
from benchmarks.setting import Setting
from benchmarks.turns import in_turn

TITLE = "C++: run.sh compiles main.cpp and runs it, unchanged, from its second run on"
FIRST = "first run, prewarmed"
LATER = "a later run, warm"
WARM_UP = 2


def measure(setting: Setting) -> Measured:
    """Each first run has its own code, in a prewarmed container: a cold start would make the ratio smaller."""
    rounds = setting.rounds(50)
    with ground(setting.settings(pause_after_s=0.02), setting.folder, prewarm=["cpp"]) as here:
        standing = here.function(COMPILED, "cpp")
        fresh = iter([here.function(COMPILED.variation(number), "cpp") for number in range(rounds + WARM_UP)])

        def first_run() -> float:
            here.wait_for_prewarmed()
            return next(fresh).expect("prewarmed")

        def in_the_child() -> dict[str, Samples]:
            standing.warm_up(2)
            variants = {LATER: lambda: standing.expect("warm"), FIRST: first_run}
            return in_turn(setting.row, variants, rounds=rounds, warm_up=WARM_UP, rest=here.wait_until_idle)

        samples = here.in_child(in_the_child)
    later, first = samples[LATER], samples[FIRST]
    lines = (
        ratio("median of the first run", later, first, Goal(0.3)),
        p95_ratio("p95 of the first's median", later, first),
    )
    return Measured(setting.row, TITLE, (later, first), lines)
