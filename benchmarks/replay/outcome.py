"""Days under every policy: the sums that the table and the picture show.

The rule: days are independent of each other, and may be computed in any process and any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.replay.day import Function, Run
from benchmarks.replay.hindsight import best_of_all, best_of_each, curve
from benchmarks.replay.policies import LastPeak, Policy, Requested, Tuner, Vpa
from benchmarks.replay.score import Cause, Score, replayed
from nanogrid.tuner.record import need
from nanogrid.tuner.rules import Rules

REQUESTED, LAST, VPA, VPA_FLOOR = "requested limit", "last peak and 40 %", "VPA's rule", "VPA's rule, floor of 250 MB"
TUNER, LATER = "NanoGrid's tuner", "NanoGrid's tuner, from 20 runs on"
EACH, ALL = "best fixed limits, 0.1 % each", "best fixed limits, 0.1 % of all"
NAMES = (REQUESTED, LAST, VPA, VPA_FLOOR, TUNER, LATER, EACH, ALL)


@dataclass
class Outcome:
    """One day, or several together. `once` counts every replayed run once, `weighted` counts the runs it stands for."""

    functions: int = 0
    few: int = 0
    """Functions with fewer runs than the minimum of samples."""

    once: dict[str, Score] = field(default_factory=dict)
    weighted: dict[str, Score] = field(default_factory=dict)
    kinds: dict[str, dict[str, Score]] = field(default_factory=dict)
    """By policy and kind of function, every run once."""

    def add(self, other: Outcome) -> None:
        """Add another day."""
        self.functions += other.functions
        self.few += other.few
        for mine, theirs in ((self.once, other.once), (self.weighted, other.weighted)):
            for name, score in theirs.items():
                mine.setdefault(name, Score()).add(score)
        for name, kinds in other.kinds.items():
            for kind, score in kinds.items():
                self.kinds.setdefault(name, {}).setdefault(kind, Score()).add(score)

    def count(self, name: str, function: Function, score: Score) -> None:
        """One function's day under one policy."""
        self.once.setdefault(name, Score()).add(score)
        self.weighted.setdefault(name, Score()).add(score, function.weight)
        self.kinds.setdefault(name, {}).setdefault(function.kind, Score()).add(score)


def outcome(functions: Sequence[Function], rules: Rules) -> Outcome:
    """All policies over one day."""
    made: dict[str, Callable[[], Policy]] = {
        REQUESTED: Requested, LAST: LastPeak, VPA: Vpa, VPA_FLOOR: lambda: Vpa(250),
        LATER: lambda: Tuner(replace(rules, minimum_samples=20)),
    }  # fmt: skip
    found = Outcome(len(functions), sum(len(function.runs) < rules.minimum_samples for function in functions))
    for function in functions:
        for name, make in made.items():
            found.count(name, function, replayed(function, make()))
        tuner = Tuner(rules)
        found.count(TUNER, function, replayed(function, tuner, _causes(function, tuner)))
        found.count(EACH, function, best_of_each(function, rules))
    curves = [curve(function, rules) for function in functions]
    found.once[ALL] = best_of_all(curves, [1.0 for _ in functions])
    found.weighted[ALL] = best_of_all(curves, [function.weight for function in functions])
    return found


def _causes(function: Function, tuner: Tuner) -> Cause:
    """Why a run under the tuner had more memory than it needed."""

    def causes(run: Run, limit_mb: int) -> dict[str, float]:
        needed = need(tuner.record, function.requested_mb, tuner.rules)
        if limit_mb >= function.requested_mb:
            if needed is None:
                return {"too few runs so far": limit_mb - run.peak_mb}
            reason = "back-off" if tuner.record.backs_off(run.at_s) else "asked for no more than it needs"
            return {reason: limit_mb - run.peak_mb}
        if needed is None:  # decided before the code changed, which the record does not show yet
            return {"rounding and hold": limit_mb - run.peak_mb}
        return {
            "rounding and hold": limit_mb - needed.memory_mb,
            "margin": needed.memory_mb - needed.peak_mb,
            f"peaks differ: {function.kind}": needed.peak_mb - run.peak_mb,
        }

    return causes
