"""What a function took at each size it was measured at, and which size to choose: pure functions over plain samples.

The rule: a size is chosen only where every run of it succeeded, and of sizes that do equally well the smallest is.

Source: AWS Lambda Power Tuning (runs at each size, the same share trimmed from both ends, three strategies). Its balanced
strategy divides by the largest time and cost of all sizes, so that one more size can change the choice between two
others; the product used here cannot do that.
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
"""Function ids of `nanogrid tune` begin with this. Their limits are what is being measured: nobody may change them."""

TRIM = 0.2
"""Share of the times that is left out at each end, rounded down: none of four runs, one at each end of five to nine."""

NOISE = 0.05
NOISE_MS = 1.0
NOISE_ERRORS = 2.0
"""Times that differ by less than this share, these milliseconds, or so many standard errors of each, do equally well."""


def is_measured(function_id: str) -> bool:
    """Whether runs of this function are measurements of `nanogrid tune`."""
    return function_id.startswith(MEASURED)


@dataclass(frozen=True, order=True)
class Size:
    """What a run may use: a memory limit in MiB, and cores. Ordered by memory first."""

    memory_mb: int
    cpus: float

    def __str__(self) -> str:
        """`128 MiB, 1 CPU`."""
        return f"{self.memory_mb} MiB, {self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"


@dataclass(frozen=True)
class Sample:
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

    `outcome` is SUCCEEDED where all runs succeeded, else that of the first that did not. `runs` counts without warm-ups,
    `not_warm` those of them that did not start warm. Times are milliseconds: the mean of what the trimming left, and its
    ends; they and `cpu_ms` (mean per run) are None where no run counts. `error_ms` is the standard error of the mean, 0
    where one run is all there is. `peak_memory_bytes` is the largest of all runs, warm-ups included: a limit has to hold
    for these, too.
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
        """Memory limit in GiB * mean time in seconds, of one run (AWS Lambda bills this, and says GB)."""
        return None if self.time_ms is None else gb_seconds(self.size, self.time_ms)


class Strategy(str, Enum):
    """What a size is chosen for."""

    COST = "cost"
    SPEED = "speed"
    BALANCED = "balanced"


def gb_seconds(size: Size, time_ms: float) -> float:
    """memory_mb / 1024 * time_ms / 1000. Cores are not in it: they are not set aside for a run, memory is."""
    return size.memory_mb / 1024 * time_ms / 1000


def trimmed(times: Sequence[float]) -> list[float]:
    """The times in ascending order, without the floor(n * TRIM) shortest and as many longest ones."""
    off = floor(len(times) * TRIM)
    return sorted(times)[off : len(times) - off]


def standard_error(times: Sequence[float]) -> float:
    """Of the mean of `trimmed(times)`; 0 for fewer than two.

    s / (h √n), s being the deviation of all n times with those that were trimmed moved to the ends of the rest, h the
    share that was kept (Tukey and McLaughlin 1963): the rest's own deviation would be too small.
    """
    if len(times) < 2:
        return 0.0
    kept = trimmed(times)
    moved = [min(max(time_ms, kept[0]), kept[-1]) for time_ms in times]
    return stdev(moved) / (len(kept) / len(times) * sqrt(len(times)))


def summarise(size: Size, samples: Sequence[Sample]) -> Measurement:
    """What the samples of one size come to. Times are those of warm runs, where any run was warm. Raises ValueError without samples."""
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
    """The smallest size that may be as good as the best one, for all the noise tells. None where no size succeeded.

    Good is, for t the mean time and g = GB-seconds of one run:

    - cost: a small g
    - speed: a small t
    - balanced: a small √(t * g). Twice the memory is worth it where it takes 30 % off the time (1 - 1/√2), and no size
      that others beat in both is chosen.

    A size may be as good as the best where it is at the short end of its `time_range`, and all others at their long ends.
    """
    working = {one.size: time_range(one) for one in measured if one.succeeded}
    if not working:
        return None
    best = min(score(size, time.longest_ms, strategy) for size, time in working.items())
    return min(size for size, time in working.items() if score(size, time.shortest_ms, strategy) <= best)


class TimeRange(NamedTuple):
    """The mean times that a measurement may stand for."""

    shortest_ms: float
    longest_ms: float


def time_range(one: Measurement) -> TimeRange:
    """The mean and NOISE_ERRORS standard errors both ways, downwards NOISE and NOISE_MS at least: less is no gain to anybody.

    Raises ValueError where it has no times.
    """
    if one.time_ms is None:
        raise ValueError(f"no times of {one.size}")
    error_ms = NOISE_ERRORS * one.error_ms
    return TimeRange(max(0.0, one.time_ms - max(error_ms, NOISE * one.time_ms, NOISE_MS)), one.time_ms + error_ms)


def score(size: Size, time_ms: float, strategy: Strategy) -> float:
    """How good a size with this mean time is; less is better. `choose` has the formulas."""
    match strategy:
        case Strategy.COST:
            return gb_seconds(size, time_ms)
        case Strategy.SPEED:
            return time_ms
        case Strategy.BALANCED:
            return sqrt(time_ms * gb_seconds(size, time_ms))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
