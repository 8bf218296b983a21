"""What a function used at each measured size, and which size to choose: pure functions over plain samples.

The rule: a size can be chosen only if every run at it succeeded. Among sizes that do equally well, the smallest is chosen.

Source: AWS Lambda Power Tuning (runs at each size, the same share trimmed from both ends, three strategies). Its balanced
strategy divides by the largest time and cost of all sizes, so one more size can change the choice between two others. With
the product used here it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import floor, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from nanogrid.result import Outcome

MEASURED = "tune:"
"""Prefix of the function ids of `nanogrid tune`. It measures their limits, so the tuner must not change them."""

TRIM = 0.2
"""Share of the times trimmed at each end, rounded down: none of four runs, one at each end of five to nine."""

NOISE = 0.05
NOISE_MS = 1.0
NOISE_ERRORS = 2.0
"""Times are equal if they differ by less than this share, these milliseconds, or this many standard errors of each."""


def is_measured(function_id: str) -> bool:
    """Whether the runs of this function are measurements of `nanogrid tune`."""
    return function_id.startswith(MEASURED)


@dataclass(frozen=True, order=True)
class Size:
    """The limits of a run: memory in MiB, and cores. Ordered by memory first."""

    memory_mb: int
    cpus: float

    def __str__(self) -> str:
        """`128 MiB, 1 CPU`."""
        return f"{self.memory_mb} MiB, {self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"


@dataclass(frozen=True)
class SizeSample:
    """One run at one size. `warm`: in a container that had run this code before. A warm-up is not `counted` in times."""

    outcome: Outcome
    time_ms: float
    peak_memory_bytes: int | None = None
    cpu_ms: int | None = None
    warm: bool = True
    counted: bool = True


@dataclass(frozen=True)
class Measurement:
    """All runs at one size.

    `outcome` is SUCCEEDED if all runs succeeded, else the outcome of the first that did not. `runs` excludes warm-ups;
    `not_warm` is how many of these runs did not start warm. Times are milliseconds: the mean of the trimmed times, and the
    shortest and longest of them. They and `cpu_ms` (mean per run) are None if no run counts. `error_ms` is the standard
    error of the mean, 0 with a single run. `peak_memory_bytes` is the largest of all runs including warm-ups, because a limit
    must suffice for these, too.
    """

    size: Size
    outcome: Outcome
    runs: int
    not_warm: int
    time_ms: float | None
    shortest_ms: float | None
    longest_ms: float | None
    error_ms: float
    cpu_ms: float | None
    peak_memory_bytes: int | None

    @property
    def succeeded(self) -> bool:
        """Whether the size can be chosen."""
        return self.outcome is Outcome.SUCCEEDED and self.time_ms is not None

    @property
    def gb_seconds(self) -> float | None:
        """Memory limit in GiB * mean time in seconds, of one run (AWS Lambda bills this, and calls it GB)."""
        return None if self.time_ms is None else gb_seconds(self.size, self.time_ms)


class Strategy(str, Enum):
    """The goal of choosing a size."""

    COST = "cost"
    SPEED = "speed"
    BALANCED = "balanced"


def gb_seconds(size: Size, time_ms: float) -> float:
    """Return memory_mb / 1024 * time_ms / 1000. Cores do not count: unlike memory, they are not reserved for a run."""
    return size.memory_mb / 1024 * time_ms / 1000


def trimmed(times: Sequence[float]) -> list[float]:
    """Return the times in ascending order, without the floor(n * TRIM) shortest and as many longest ones."""
    off = floor(len(times) * TRIM)
    return sorted(times)[off : len(times) - off]


def standard_error(times: Sequence[float]) -> float:
    """Return the standard error of the mean of `trimmed(times)`; 0 for fewer than two.

    s / (h √n), with s the deviation of all n times after the trimmed ones are moved to the ends of the rest, and h the kept
    share (Tukey and McLaughlin 1963). The deviation of the rest alone would be too small.
    """
    if len(times) < 2:
        return 0.0
    kept = trimmed(times)
    moved = [min(max(time_ms, kept[0]), kept[-1]) for time_ms in times]
    return stdev(moved) / (len(kept) / len(times) * sqrt(len(times)))


def summarize(size: Size, samples: Sequence[SizeSample]) -> Measurement:
    """Summarize the samples of one size. If any run was warm, only warm runs count in times. Raises ValueError without samples."""
    if not samples:
        raise ValueError(f"no samples of {size}")
    counted = [sample for sample in samples if sample.counted]
    succeeded = [sample for sample in counted if sample.outcome is Outcome.SUCCEEDED]
    timed = [sample for sample in succeeded if sample.warm] or succeeded
    kept = trimmed([sample.time_ms for sample in timed])
    cpu = [sample.cpu_ms for sample in timed if sample.cpu_ms is not None]
    failed = [sample.outcome for sample in samples if sample.outcome is not Outcome.SUCCEEDED]
    return Measurement(
        size,
        failed[0] if failed else Outcome.SUCCEEDED,
        runs=len(counted),
        not_warm=sum(not sample.warm for sample in counted),
        time_ms=_mean(kept),
        shortest_ms=kept[0] if kept else None,
        longest_ms=kept[-1] if kept else None,
        error_ms=standard_error([sample.time_ms for sample in timed]),
        cpu_ms=_mean(cpu),
        peak_memory_bytes=max((s.peak_memory_bytes for s in samples if s.peak_memory_bytes is not None), default=None),
    )


def choose(measured: Sequence[Measurement], strategy: Strategy) -> Size | None:
    """Return the smallest size that, within the noise, may be as good as the best one. None if no size succeeded.

    With t the mean time and g = GB-seconds of one run, good means:

    - cost: a small g
    - speed: a small t
    - balanced: a small √(t * g). Twice the memory is worth it if it takes 30 % off the time (1 - 1/√2). A size that another
      one beats in both is never chosen.

    A size may be as good as the best if it is so at the short end of its `time_range`, with all others at their long ends.
    """
    working = {one.size: time_range(one) for one in measured if one.succeeded}
    if not working:
        return None
    best = min(score(size, time.longest_ms, strategy) for size, time in working.items())
    return min(size for size, time in working.items() if score(size, time.shortest_ms, strategy) <= best)


class TimeRange(NamedTuple):
    """The range in which the true mean time may lie."""

    shortest_ms: float
    longest_ms: float


def time_range(one: Measurement) -> TimeRange:
    """Return the mean minus and plus NOISE_ERRORS standard errors; downwards at least NOISE and NOISE_MS, as less is no real gain.

    Raises ValueError if the measurement has no times.
    """
    if one.time_ms is None:
        raise ValueError(f"no times of {one.size}")
    error_ms = NOISE_ERRORS * one.error_ms
    return TimeRange(max(0.0, one.time_ms - max(error_ms, NOISE * one.time_ms, NOISE_MS)), one.time_ms + error_ms)


def score(size: Size, time_ms: float, strategy: Strategy) -> float:
    """Return how good a size with this mean time is; less is better. See `choose` for the formulas."""
    match strategy:
        case Strategy.COST:
            return gb_seconds(size, time_ms)
        case Strategy.SPEED:
            return time_ms
        case Strategy.BALANCED:
            return sqrt(time_ms * gb_seconds(size, time_ms))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
