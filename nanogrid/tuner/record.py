"""What is known of one function's memory, and how a run changes it.

The rule: a record has constant size, and `learn` gives a new one. The order of samples matters only where time does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nanogrid.result import Outcome
from nanogrid.tuner.histogram import Histogram
from nanogrid.tuner.rules import Rules

VERSION = 1
"""Of the JSON. A record of another version is none: the function is learned anew."""

CODES = 4
"""So many of a function's last codes are known. While one replaces another, late runs of the old one change nothing."""

GUESSES = 8
"""So many OOM kills can wait for what their second run measures."""

DOUBLINGS = 8
"""A back-off that mistakes follow closely becomes longer, so many times at most."""

CALM = 4
"""A mistake follows closely when fewer runs than so many back-offs lie between."""

MEANS_OVER = 200
"""The mean duration is that of about so many runs."""

MEASURED = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OUTPUT_LIMIT})
"""Outcomes whose peak is a sample. A cancelled run may not have come to its peak."""


@dataclass(frozen=True)
class Sample:
    """One run, as it was measured.

    `limit_mb` was in force, `requested_mb` was asked for, `lowered` says that the tuner made the difference. `code` is the hash
    of the code. `rerun` marks the second run of a request whose first one was out of memory under a lowered limit.
    """

    at_s: float
    peak_mb: float | None
    outcome: Outcome
    duration_ms: float
    cpu_ms: float | None
    limit_mb: int
    requested_mb: int
    code: str
    lowered: bool
    rerun: bool = False


class Guess(NamedTuple):
    """What a run that was out of memory was taken to need, until its second run tells."""

    at_s: float
    needed_mb: float


@dataclass(frozen=True)
class Record:
    """One function's memory.

    `samples` counts what the histogram holds, without decay; those of older code count less. `runs` counts all of them.
    `held_mb` is the limit that was recommended last, since `held_at_s`. `setbacks` counts OOM kills under a lowered limit; the function has its
    requested limit until `backoff_until_s` or for `backoff_runs` more runs, and had `calm_runs` runs since the last of them. `short_mb` is the largest requested limit under which a
    run was out of memory, until `short_until_s`. Times are seconds of the clock of the samples.
    """

    histogram: Histogram
    samples: float = 0.0
    runs: int = 0
    codes: tuple[str, ...] = ()
    mean_ms: float = 0.0
    setbacks: int = 0
    doublings: int = 0
    backoff_until_s: float = 0.0
    backoff_runs: int = 0
    calm_runs: int = 0
    guesses: tuple[Guess, ...] = ()
    held_mb: int | None = None
    held_at_s: float = 0.0
    short_mb: int = 0
    short_until_s: float = 0.0
    last_s: float = 0.0

    @classmethod
    def empty(cls, rules: Rules | None = None) -> Record:
        """Nothing is known."""
        return cls(Histogram((rules or Rules()).half_life_s))

    @property
    def code(self) -> str | None:
        """The code that ran last for the first time; None before the first run."""
        return self.codes[-1] if self.codes else None

    def backs_off(self, now_s: float) -> bool:
        """Whether the next run has its requested limit because a lowered one was wrong just now."""
        return self.backoff_runs > 0 and now_s < self.backoff_until_s

    def holds(self, memory_mb: int, now_s: float, rules: Rules) -> bool:
        """Whether the limit that was recommended last still stands, although this one would do."""
        return self.held_mb is not None and memory_mb < self.held_mb and now_s < self.held_at_s + rules.hold_s

    def to_json(self) -> dict[str, Any]:
        """Plain data of at most 4 KB."""
        return {
            "version": VERSION,
            **vars(self),
            "histogram": self.histogram.to_json(),
            "codes": list(self.codes),
            "guesses": [list(guess) for guess in self.guesses],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], rules: Rules | None = None) -> Record:
        """What `to_json` gave; an empty record where another version of NanoGrid wrote it.

        With `rules`, the histogram decays by their half-life from now on. Raises KeyError, TypeError or ValueError on
        anything that is no record.
        """
        if data["version"] != VERSION:
            return cls.empty(rules)
        fields = {name: value for name, value in data.items() if name != "version"}
        fields["histogram"] = Histogram.from_json(data["histogram"])
        if rules is not None:
            fields["histogram"] = replace(fields["histogram"], half_life_s=rules.half_life_s)
        fields["codes"] = tuple(map(str, data["codes"]))
        fields["guesses"] = tuple(Guess(float(at_s), float(needed)) for at_s, needed in data["guesses"])
        return cls(**fields)


def learn(record: Record, sample: Sample, rules: Rules) -> Record:
    """The record after one more run."""
    record = renewed(record, sample.code, rules)
    if sample.rerun and record.guesses:
        record = _without_guess(record)
    needed_mb = _needed_mb(sample, rules)
    if needed_mb is not None:
        record = replace(
            record,
            histogram=record.histogram.add(needed_mb, sample.at_s),
            samples=record.samples + 1,
            runs=record.runs + 1,
            calm_runs=record.calm_runs + 1,
            backoff_runs=max(0, record.backoff_runs - (not sample.lowered and not sample.rerun)),
            last_s=max(record.last_s, sample.at_s),
        )
    if sample.outcome is Outcome.OUT_OF_MEMORY:
        record = _out_of_memory(record, sample, rules)
    elif sample.outcome in MEASURED:
        share = 1 / min(record.runs or 1, MEANS_OVER)
        record = replace(record, mean_ms=round(record.mean_ms + (sample.duration_ms - record.mean_ms) * share, 3))
    return _held(record, sample, rules)


def renewed(record: Record, code: str, rules: Rules) -> Record:
    """The record for a run of this code: what other code did counts less, if this code was not seen lately.

    A function that had enough samples still has enough: with the widest margin, and a second run where that is wrong.
    """
    code = code[:16]
    if code in record.codes:
        return record
    if not record.codes:
        return replace(record, codes=(code,))
    return replace(
        record,
        histogram=record.histogram.scaled(rules.new_code_weight),
        samples=max(record.samples * rules.new_code_weight, min(record.samples, rules.minimum_samples)),
        codes=(*record.codes, code)[-CODES:],
        guesses=(),
        short_mb=0,
    )


class Need(NamedTuple):
    """A peak that has room (MiB), the share of the runs that exceeds it, and what it is with its margin."""

    peak_mb: float
    above: float
    memory_mb: float


def need(record: Record, requested_mb: int, rules: Rules) -> Need | None:
    """The cheapest of the peaks that may be the highest one with room. None: too few samples.

    A limit costs what every run holds, and for each run that exceeds it an attempt under it and one under the requested one.
    """
    if record.samples < rules.minimum_samples:
        return None
    with_margin = 1 + rules.margin_of(record.samples)
    found, least = None, 0.0
    for peak_mb, above in record.histogram.limits(rules.percentile):
        memory_mb = peak_mb * with_margin
        rounded = rules.rounded(memory_mb)
        cost = rounded + above * max(rounded, requested_mb)
        if found is None or cost < least:
            found, least = Need(peak_mb, above, memory_mb), cost
    return found


def _needed_mb(sample: Sample, rules: Rules) -> float | None:
    """What the run needed, as far as it is known. None: it tells nothing."""
    if sample.outcome is Outcome.OUT_OF_MEMORY:
        return rules.needed_mb(sample.limit_mb if sample.peak_mb is None else sample.peak_mb)
    return sample.peak_mb if sample.outcome in MEASURED else None


def _without_guess(record: Record) -> Record:
    """The oldest guess gives way to what is measured now."""
    guess, *others = record.guesses
    return replace(
        record,
        histogram=record.histogram.remove(guess.needed_mb, guess.at_s),
        samples=max(0.0, record.samples - 1),
        runs=max(0, record.runs - 1),
        guesses=tuple(others),
    )


def _out_of_memory(record: Record, sample: Sample, rules: Rules) -> Record:
    """Under a lowered limit the tuner was wrong; under its own one the function needs more than it asks for."""
    if not sample.lowered:
        return replace(
            record,
            short_mb=max(record.short_mb, sample.requested_mb),
            short_until_s=max(record.short_until_s, sample.at_s + rules.half_life_s),
        )
    needed_mb = _needed_mb(sample, rules)
    assert needed_mb is not None
    again = record.setbacks > 0 and record.calm_runs < CALM * (rules.backoff_runs << record.doublings)
    if record.backs_off(sample.at_s):  # it had started before: the same mistake
        doublings = record.doublings
    else:
        doublings = min(DOUBLINGS, record.doublings + 1) if again else 0
    return replace(
        record,
        setbacks=record.setbacks + 1,
        doublings=doublings,
        backoff_until_s=max(record.backoff_until_s, sample.at_s + rules.backoff_s),
        backoff_runs=rules.backoff_runs << doublings,
        calm_runs=0,
        guesses=(*record.guesses, Guess(sample.at_s, needed_mb))[-GUESSES:],
    )


def _held(record: Record, sample: Sample, rules: Rules) -> Record:
    """Upwards at once, downwards only when the last change is long enough ago: limits do not flutter."""
    needed = need(record, sample.requested_mb, rules)
    memory_mb = None if needed is None else rules.rounded(needed.memory_mb)
    if memory_mb == record.held_mb or (memory_mb and record.holds(memory_mb, sample.at_s, rules)):
        return record
    return replace(record, held_mb=memory_mb, held_at_s=sample.at_s)


def missing(record: Record, rules: Rules) -> int:
    """How many more runs are needed before there is a recommendation."""
    return max(0, math.ceil(rules.minimum_samples - record.samples))
