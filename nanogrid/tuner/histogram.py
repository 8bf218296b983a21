"""A decaying histogram of memory peaks: exponential buckets, constant space, immutable.

The rule: only the ratios of weights matter. A sample that is one half-life younger weighs twice as much, so stored weights
never need an update as time passes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

FIRST_MB = 8.0
"""Upper edge of the first bucket."""

RATIO = 1.05
"""Each edge divided by the one before."""

LAST = 160
"""The last bucket holds everything above 18.7 GiB."""

MOST_BUCKETS = 128
"""If there are more, the lowest ones are merged: they are far below every percentile in use."""

SHIFT_AFTER = 8
"""Half-lives after which weights are rescaled to a later reference time, long before they grow large."""

DIGITS = 4
"""Stored decimals of a weight. A new sample weighs 1 or more, so only weights older than 13 half-lives are cut off."""

SMALLEST = 0.5 * 10**-DIGITS
"""The smallest weight of a bucket."""

RESIDUE = 0.01
"""After a sample is removed, a bucket with less than this share of its weight counts as empty."""

SLIGHT = 1e-9
"""Relative rounding error of sums of weights that must not move a percentile to another bucket."""


class Bucket(NamedTuple):
    """The samples between two edges: their weight, and the largest sample itself (MiB)."""

    number: int
    weight: float
    highest_mb: float


def number_of(value_mb: float) -> int:
    """Return the bucket of a value. A value at an edge belongs to the bucket below."""
    if value_mb <= FIRST_MB:
        return 0
    return min(LAST, math.ceil(math.log(value_mb / FIRST_MB, RATIO) - SLIGHT))


def edge_mb(number: int) -> float:
    """Return the upper edge of a bucket, in MiB."""
    return FIRST_MB * RATIO**number


@dataclass(frozen=True)
class Histogram:
    """Weights by bucket, relative to a sample at `reference_s` (seconds of any one clock), which weighs 1.

    `buckets` are in ascending order; none has zero weight.
    """

    half_life_s: float
    reference_s: float = 0.0
    buckets: tuple[Bucket, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any sample."""
        return bool(self.buckets)

    @property
    def total(self) -> float:
        """The weight of all samples, in samples at the reference time."""
        return sum(bucket.weight for bucket in self.buckets)

    def weight_at(self, at_s: float) -> float:
        """The weight of all samples at this time: how many new samples they are worth."""
        return _halved(self.total, (at_s - self.reference_s) / self.half_life_s)

    @property
    def highest_mb(self) -> float | None:
        """The largest sample that has weight. None without samples."""
        return self.buckets[-1].highest_mb if self.buckets else None

    def add(self, value_mb: float, at_s: float, weight: float = 1.0) -> Histogram:
        """Return the histogram with one more sample. A sample from an earlier time gets the weight of its age."""
        shifted = self._shifted_for(at_s)
        doubled = (at_s - shifted.reference_s) / self.half_life_s
        return shifted._changed(value_mb, _halved(weight, -doubled))

    def remove(self, value_mb: float, at_s: float, weight: float = 1.0) -> Histogram:
        """Return the histogram without a sample that was added with the same arguments. It may have decayed already."""
        doubled = (at_s - self.reference_s) / self.half_life_s
        return self._changed(value_mb, -_halved(weight, -doubled)) if self.buckets else self

    def percentile(self, q: float) -> float | None:
        """Return the upper edge (MiB) of the first bucket up to which this share of the weight lies. None without samples."""
        bucket = self._bucket(q)
        if bucket is None:
            return None
        return max(edge_mb(bucket.number), bucket.highest_mb if bucket.number == LAST else 0.0)

    def limits(self, q: float) -> list[tuple[float, float]]:
        """Return every limit (MiB) that covers at least this share of the weight, descending, with the share above it.

        The first one is the largest sample itself, with nothing above; the others are edges. Empty without samples.
        """
        total, above = self.total, 0.0
        found: list[tuple[float, float]] = []
        for number, weight, highest_mb in reversed(self.buckets):
            if above > total * (1 - q + SLIGHT):
                break
            found.append((edge_mb(number) if found else highest_mb, above / total))
            above += weight
        return found

    def scaled(self, weight: float) -> Histogram:
        """Return the same shape with another weight: with 0.25, each sample counts as a quarter of a new one."""
        return self._with(bucket._replace(weight=bucket.weight * weight) for bucket in self.buckets)

    def merge(self, other: Histogram) -> Histogram:
        """Return a histogram with the samples of both. Their half-lives must be equal."""
        if other.half_life_s != self.half_life_s:
            raise ValueError(
                f"histograms with half-lives of {self.half_life_s} and {other.half_life_s} s cannot be merged"
            )
        if not self.buckets or not other.buckets:
            return self if self.buckets else other
        older, younger = sorted((self, other), key=lambda one: one.reference_s)
        together = {bucket.number: bucket for bucket in younger.buckets}
        halvings = (younger.reference_s - older.reference_s) / self.half_life_s
        for number, weight, highest_mb in older.buckets:
            known = together.get(number, Bucket(number, 0.0, 0.0))
            together[number] = Bucket(
                number, known.weight + _halved(weight, halvings), max(known.highest_mb, highest_mb)
            )
        return younger._with(together[number] for number in sorted(together))

    def to_json(self) -> dict[str, Any]:
        """Return at most 4 KB of plain data, however many samples there were."""
        return {
            "halfLifeS": self.half_life_s,
            "referenceS": self.reference_s,
            "bucket": [bucket.number for bucket in self.buckets],
            "weight": [int(bucket.weight) if bucket.weight.is_integer() else bucket.weight for bucket in self.buckets],
            "highestMb": [bucket.highest_mb for bucket in self.buckets],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Histogram:
        """Parse the output of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        columns = zip(data["bucket"], data["weight"], data["highestMb"], strict=True)
        buckets = tuple(Bucket(int(number), float(weight), float(highest)) for number, weight, highest in columns)
        return cls(float(data["halfLifeS"]), float(data["referenceS"]), buckets)

    def _bucket(self, q: float) -> Bucket | None:
        wanted = self.total * (q - SLIGHT)
        reached = 0.0
        for bucket in self.buckets:
            reached += bucket.weight
            if reached >= wanted:
                return bucket
        return self.buckets[-1] if self.buckets else None

    def _shifted_for(self, at_s: float) -> Histogram:
        """Move the reference so that a sample at this time has a small weight. By whole half-lives, so that nothing is rounded."""
        if not self.buckets:
            return replace(self, reference_s=at_s)
        halvings = math.floor((at_s - self.reference_s) / self.half_life_s)
        if halvings < SHIFT_AFTER:
            return self
        shifted = replace(self, reference_s=self.reference_s + halvings * self.half_life_s)
        return shifted._with(bucket._replace(weight=_halved(bucket.weight, halvings)) for bucket in self.buckets)

    def _changed(self, value_mb: float, weight: float) -> Histogram:
        """Return the histogram with more weight in a value's bucket, or less if `weight` is negative."""
        value_mb = math.ceil(value_mb * 10 - SLIGHT) / 10  # rounded up: the stored value is never below the used memory
        number = number_of(value_mb)
        place = bisect_left(self.buckets, (number,))
        here = self.buckets[place : place + 1]
        known = here[0] if here and here[0].number == number else Bucket(number, 0.0, 0.0)
        left = round(known.weight + weight, DIGITS)
        # A removed sample leaves no residue, whatever was rounded in between.
        some = left >= SMALLEST and left > -RESIDUE * weight
        kept = (Bucket(number, left, max(known.highest_mb, value_mb)),) if some else ()
        after = self.buckets[place + (known.weight > 0) :]
        changed = (*self.buckets[:place], *kept, *after)
        return Histogram(self.half_life_s, self.reference_s, _few(changed))

    def _with(self, buckets: Iterable[Bucket]) -> Histogram:
        """Return the histogram with these buckets, rounded as they are stored, in constant space."""
        rounded = (Bucket(number, round(weight, DIGITS), highest_mb) for number, weight, highest_mb in buckets)
        return replace(self, buckets=_few(tuple(bucket for bucket in rounded if bucket.weight >= SMALLEST)))


def _few(buckets: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
    """Merge the lowest buckets until there are at most MOST_BUCKETS."""
    while len(buckets) > MOST_BUCKETS:
        lowest, second, *others = buckets
        buckets = (second._replace(weight=round(lowest.weight + second.weight, DIGITS)), *others)
    return buckets


def _halved(weight: float, halvings: float) -> float:
    """Return a weight after this many half-lives. Negative half-lives double it."""
    return weight * math.pow(2.0, -max(-1000.0, min(1000.0, halvings)))
