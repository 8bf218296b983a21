"""Shared by several rows: a warm Python function, in turn with its own bare run, both from one child."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import Line, Samples, ratio
from benchmarks.host import BareRun
from benchmarks.pooled import Function, Ground
from benchmarks.programs import Program
from benchmarks.turns import Variant, in_turn

WARM = "nanogrid, warm"
AT_ONCE = "nanogrid, warm, one right after the other"
BARE = "bare python3 main.py"


def beside_bare(
    row: str, here: Ground, function: Function, program: Program, python: Path, folder: Path, rounds: int
) -> tuple[Samples, Samples, Samples, str]:
    """Milliseconds of warm runs in turn with bare ones, of bare ones, and of warm runs in immediate succession.

    The bare ones run in `folder`. The last is a note on the first.
    """

    def measure() -> tuple[dict[str, Samples], Samples, str]:
        function.warm_up()
        bare = BareRun([str(python), "main.py"], program, folder)
        variants: dict[str, Variant] = {WARM: lambda: function.expect("warm"), BARE: bare}
        samples = in_turn(row, variants, rounds=rounds, rest=here.wait_until_idle)
        note = function.anatomy()
        at_once = Samples(AT_ONCE, "ms", tuple(function.expect("warm") for _ in range(rounds)))
        return samples, at_once, note

    samples, at_once, note = here.in_child(measure)
    return samples[WARM], samples[BARE], at_once, note


def at_once_line(at_once: Samples, bare: Samples) -> Line:
    """The time of a run that must wait until its container is cleaned. For information."""
    return ratio("median of bare, one warm run right after the other", at_once, bare)
