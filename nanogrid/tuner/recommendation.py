"""What memory a function should ask for, with the reason in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from nanogrid.tuner.record import Record, missing, need_mb, target_mb
from nanogrid.tuner.rules import Rules

__all__ = ["Recommendation", "Rules", "recommend"]

RUNS = 1000
"""Savings are told for so many runs."""


@dataclass(frozen=True)
class Recommendation:
    """`memory_mb` is None while there are too few samples, and `missing` how many more are needed.

    `saving_gb_s`: GB-seconds that 1000 runs of mean duration would take less under it than under the requested limit;
    negative where more is recommended. `sentence` explains all of it.
    """

    memory_mb: int | None
    missing: int
    saving_gb_s: float
    sentence: str


def recommend(record: Record, requested_mb: int, rules: Rules, now_s: float) -> Recommendation:
    """The limit in MiB that suits what was measured, whether it is below or above the requested one.

    The requested one itself where it is enough, and only floor or rounding would ask for more.
    """
    short = record.short_mb >= requested_mb and now_s < record.short_until_s
    target, need = target_mb(record, rules), need_mb(record, rules)
    if target is None or need is None:
        left = missing(record, rules)
        return Recommendation(None, left, 0.0, _insufficient(requested_mb, rules, left, short=short))
    memory_mb = target
    if record.held_mb is not None and target < record.held_mb and now_s < record.held_at_s + rules.hold_s:
        memory_mb = record.held_mb
    if need <= requested_mb < memory_mb and not short:
        memory_mb = requested_mb
    saving_gb_s = (requested_mb - memory_mb) / 1024 * record.mean_ms / 1000 * RUNS
    reason = "a run was out of memory" if short else _used(record, rules)
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


def _used(record: Record, rules: Rules) -> str:
    """What the recommendation rests on, in words."""
    highest_mb = record.histogram.highest_mb or 0.0
    peak_mb = record.histogram.tight_percentile(rules.percentile) or 0.0
    if peak_mb < highest_mb:
        return f"{rules.percentile * 100:g} % of {record.runs} runs used at most {peak_mb:.0f} MiB"
    return f"the highest of {record.runs} runs used {highest_mb:.0f} MiB"


def _short(value: float) -> str:
    """Two digits that matter."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
