"""What the tuner knows about one function's memory, and how a run changes it.

The rule: a record has constant size, and `learn` returns a new one. The order of samples matters only through their times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nanogrid.result import Outcome
from nanogrid.tuner.histogram import Histogram
from nanogrid.tuner.rules import Rules

VERSION = 1
"""Version of the JSON. A record of another version is ignored, and learning starts again."""

CODES = 4
"""How many of a function's last codes a record keeps. While a new code replaces one of these, late runs of the old one change nothing."""

GUESSES = 8
"""How many OOM kills can wait for the measurement of their re-run."""

DOUBLINGS = 8
"""How often a back-off can double if mistakes follow closely."""

CALM = 4
"""A mistake follows closely if fewer runs than this many back-offs came between."""

MEANS_OVER = 200
"""The mean duration covers about this many runs."""

MEASURED = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OUTPUT_LIMIT})
"""Outcomes whose peak is a sample. A cancelled run may not have reached its peak."""


@dataclass(frozen=True)
class Sample:
    """The measurements of one run.

    `limit_mb` was in force, `requested_mb` was requested; `lowered` means that the tuner lowered the limit. `code` is the hash of
    the code. `rerun` marks the second run of a request whose first one was out of memory under a lowered limit.
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
    """The estimated need of a run that was out of memory, until its re-run is measured."""

    at_s: float
    needed_mb: float


@dataclass(frozen=True)
class Record:
    """The memory of one function.

    `samples` counts the samples in the histogram without decay, those of older code with less weight; `runs` counts all of
    them. `held_mb` is the last recommended limit, valid since `held_at_s`. `setbacks` counts OOM kills under a lowered limit. After
    one, the function gets its requested limit until `backoff_until_s`, but for at most `backoff_runs` more runs; `calm_runs`
    counts the runs since then. `short_mb` is the largest requested limit under which a run was out of memory, kept until
    `short_until_s`. Times are in seconds, by the clock of the samples.
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
        """Return a record without samples."""
        return cls(Histogram((rules or Rules()).half_life_s))

    @property
    def code(self) -> str | None:
        """The newest code, by its first run; None before any run."""
        return self.codes[-1] if self.codes else None

    def backs_off(self, now_s: float) -> bool:
        """Whether the next run gets its requested limit because a lowered one was too small recently."""
        return self.backoff_runs > 0 and now_s < self.backoff_until_s

    def holds(self, memory_mb: int, now_s: float, rules: Rules) -> bool:
        """Whether the last recommended limit is kept, although this lower one would do."""
        return self.held_mb is not None and memory_mb < self.held_mb and now_s < self.held_at_s + rules.hold_s

    def to_json(self) -> dict[str, Any]:
        """Return plain data of at most 4 KB."""
        return {
            "version": VERSION,
            **vars(self),
            "histogram": self.histogram.to_json(),
            "codes": list(self.codes),
            "guesses": [list(guess) for guess in self.guesses],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], rules: Rules | None = None) -> Record:
        """Parse the output of `to_json`; an empty record if another version of NanoGrid wrote it.

        With `rules`, the histogram decays by their half-life from now on. Raises KeyError, TypeError or ValueError if the
        data is not a record.
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
    """Return the record after one more run."""
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
    """Return the record for a run of this code. If the code is new, samples of earlier code count less.

    A function with enough samples keeps enough: the limit has the widest margin then, and a re-run corrects a mistake.
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
    """A peak to make room for (MiB), the share of runs that exceed it, and the peak with its margin."""

    peak_mb: float
    above: float
    memory_mb: float


def need(record: Record, requested_mb: int, rules: Rules) -> Need | None:
    """Return the peak whose limit is the cheapest. None with too few samples.

    A limit costs the memory that every run holds. A run that exceeds it costs two: one under this limit, one under the
    requested one.
    """
    if record.samples < rules.minimum_samples:
        return None
    with_margin = 1 + rules.margin_of(record.samples)
    cheapest, least = None, 0.0
    for peak_mb, above in record.histogram.limits(rules.percentile):
        memory_mb = peak_mb * with_margin
        rounded = rules.rounded(memory_mb)
        cost = rounded + above * max(rounded, requested_mb)
        if cheapest is None or cost < least:
            cheapest, least = Need(peak_mb, above, memory_mb), cost
    return cheapest


def _needed_mb(sample: Sample, rules: Rules) -> float | None:
    """Return how much the run needed, by measurement or estimate. None if the run is not a sample."""
    if sample.outcome is Outcome.OUT_OF_MEMORY:
        return rules.needed_mb(sample.limit_mb if sample.peak_mb is None else sample.peak_mb)
    return sample.peak_mb if sample.outcome in MEASURED else None


def _without_guess(record: Record) -> Record:
    """Remove the oldest guess: the re-run that is learned now replaces it."""
    guess, *others = record.guesses
    return replace(
        record,
        histogram=record.histogram.remove(guess.needed_mb, guess.at_s),
        samples=max(0.0, record.samples - 1),
        runs=max(0, record.runs - 1),
        guesses=tuple(others),
    )


def _out_of_memory(record: Record, sample: Sample, rules: Rules) -> Record:
    """Learn an OOM kill. Under a lowered limit the tuner was wrong; otherwise the function requests too little."""
    if not sample.lowered:
        return replace(
            record,
            short_mb=max(record.short_mb, sample.requested_mb),
            short_until_s=max(record.short_until_s, sample.at_s + rules.half_life_s),
        )
    needed_mb = _needed_mb(sample, rules)
    assert needed_mb is not None
    again = record.setbacks > 0 and record.calm_runs < CALM * (rules.backoff_runs << record.doublings)
    if record.backs_off(sample.at_s):  # this run started before the back-off: the same mistake
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
    """Raise the limit at once, lower it only if the last change is long enough ago, so that limits do not flap."""
    needed = need(record, sample.requested_mb, rules)
    memory_mb = None if needed is None else rules.rounded(needed.memory_mb)
    if memory_mb == record.held_mb or (memory_mb and record.holds(memory_mb, sample.at_s, rules)):
        return record
    return replace(record, held_mb=memory_mb, held_at_s=sample.at_s)


def missing(record: Record, rules: Rules) -> int:
    """Return how many more runs are needed for a recommendation."""
    return max(0, math.ceil(rules.minimum_samples - record.samples))
