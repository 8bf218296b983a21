"""The best fixed limits for a past day: no fixed limit of a function can do better."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.replay.day import Function
from benchmarks.replay.score import Score, held_fixed
from nanogrid.tuner.rules import Rules

BUDGET = 0.001
"""Share of the runs that may run twice."""

ROUNDS = 50


def best_of_each(function: Function, rules: Rules) -> Score:
    """The day under the smallest limit that at most a thousandth of this function's runs exceed."""
    peaks = sorted(run.peak_mb for run in function.runs)
    allowed = int(len(peaks) * BUDGET)
    return held_fixed(function, rules.rounded(peaks[-1 - allowed]))


def curve(function: Function, rules: Rules) -> list[Score]:
    """The outcome of each limit, down to one that half of the runs exceed."""
    peaks = sorted(run.peak_mb for run in function.runs)
    return [
        held_fixed(function, limit_mb)
        for limit_mb in sorted({rules.rounded(peak) for peak in peaks[len(peaks) // 2 :]})
    ]


def best_of_all(curves: Sequence[Sequence[Score]], weights: Sequence[float]) -> Score:
    """The cheapest limits if a thousandth of all runs, of any function, may run twice.

    Each function takes its cheapest limit at a price per second run, and the lowest price is looked for at which these are few
    enough.
    """

    def at(price: float) -> Score:
        total = Score()
        for scores, weight in zip(curves, weights, strict=True):
            total.add(min(scores, key=lambda score: score.held_gb_s + price * score.reruns), weight)
        return total

    low, high = 1e-6, 1e9
    for _ in range(ROUNDS):
        price = (low * high) ** 0.5
        low, high = (low, price) if at(price).rerun_share <= BUDGET else (price, high)
    return at(high)
