"""How much memory a function should request, with the reason in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from nanogrid.tuner.record import Need, Record, missing, need
from nanogrid.tuner.rules import Rules

__all__ = ["Recommendation", "Rules", "recommend"]

RUNS = 1000
"""Savings are computed for this many runs."""


@dataclass(frozen=True)
class Recommendation:
    """`memory_mb` is None while there are too few samples; `missing` is how many more are needed.

    `saving_gb_s` is how many GB-seconds 1000 runs of mean duration save compared to the requested limit; negative if more
    memory is recommended. `sentence` explains the recommendation.
    """

    memory_mb: int | None
    missing: int
    saving_gb_s: float
    sentence: str


def recommend(record: Record, requested_mb: int, rules: Rules, now_s: float) -> Recommendation:
    """Return the limit in MiB that fits the measurements, whether below or above the requested one.

    It is the requested limit itself if that is enough and only the floor or rounding would raise it.
    """
    short = record.short_mb >= requested_mb and now_s < record.short_until_s
    needed = need(record, requested_mb, rules)
    if needed is None:
        left = missing(record, rules)
        return Recommendation(None, left, 0.0, _insufficient(requested_mb, rules, left, short=short))
    memory_mb = rules.rounded(needed.memory_mb)
    if record.holds(memory_mb, now_s, rules):
        memory_mb = record.held_mb or memory_mb
    if needed.memory_mb <= requested_mb < memory_mb and not short:
        memory_mb = requested_mb
    saving_gb_s = (requested_mb - memory_mb) / 1024 * record.mean_ms / 1000 * RUNS
    reason = "a run was out of memory" if short else _used(record, needed)
    if memory_mb < requested_mb:
        saved = f"which saves {_short(saving_gb_s)} GB-seconds per {RUNS} runs"
        sentence = f"lower memoryMb from {requested_mb} to {memory_mb}: {reason}, {saved}"
    elif memory_mb > requested_mb:
        sentence = f"raise memoryMb from {requested_mb} to {memory_mb}: {reason}"
    else:
        sentence = f"memoryMb {requested_mb} is right: {reason}"
    return Recommendation(memory_mb, 0, saving_gb_s, sentence)


def _insufficient(requested_mb: int, rules: Rules, left: int, *, short: bool) -> str:
    if short:
        return (
            f"raise memoryMb above {requested_mb}: a run was out of memory (for a number {left} more runs are needed)"
        )
    counted = rules.minimum_samples - left
    return f"insufficient data: {counted} of {rules.minimum_samples} runs are measured, {left} more are needed"


def _used(record: Record, needed: Need) -> str:
    """Return the measurements behind the recommendation, in words."""
    if needed.above > 0:
        return f"{(1 - needed.above) * 100:.3g} % of {record.runs} runs used at most {needed.peak_mb:.0f} MiB"
    return f"the highest of {record.runs} runs used {needed.peak_mb:.0f} MiB"


def _short(value: float) -> str:
    """Format with two significant digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
