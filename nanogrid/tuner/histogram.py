"""A decaying histogram of memory peaks: exponential buckets, constant space, immutable.

The rule: only weights relative to each other count. A sample that is one half-life younger weighs twice as much, so nothing
that is stored has to be touched as time goes by.
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
"""Each further edge, of the one before."""

LAST = 160
"""The last bucket: all above 18.7 GiB."""

MOST_BUCKETS = 128
"""When there are more, the lowest ones are put together: they are far from every percentile that is asked for."""

SHIFT_AFTER = 8
"""Half-lives after which weights are made relative to a younger time, long before they grow large."""

DIGITS = 4
"""Decimals of a weight that are kept. A new sample weighs 1 or more, so what is cut off is 13 half-lives old."""

SMALLEST = 0.5 * 10**-DIGITS
"""No bucket has less weight."""

RESIDUE = 0.01
"""A bucket with less than this share of a sample that was taken away holds nothing."""

SLIGHT = 1e-9
"""What sums of weights may be off by, relatively, without a percentile changing its bucket."""


class Bucket(NamedTuple):
    """The samples between two edges: their weight, and the largest one that was really seen (MiB)."""

    number: int
    weight: float
    highest_mb: float


def number_of(value_mb: float) -> int:
    """The bucket of a value. Values at an edge belong to the bucket below it."""
    if value_mb <= FIRST_MB:
        return 0
    return min(LAST, math.ceil(math.log(value_mb / FIRST_MB, RATIO) - SLIGHT))


def edge_mb(number: int) -> float:
    """The upper edge of a bucket, in MiB."""
    return FIRST_MB * RATIO**number


@dataclass(frozen=True)
class Histogram:
    """Weights by bucket, relative to a sample at `reference_s` (seconds of any one clock), which weighs 1.

    `buckets` stand in rising order; there is none without weight.
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
        """The weight of all samples, in samples at this time: how many recent ones they are worth."""
        return _halved(self.total, (at_s - self.reference_s) / self.half_life_s)

    @property
    def highest_mb(self) -> float | None:
        """The largest sample that has weight. None: no sample."""
        return self.buckets[-1].highest_mb if self.buckets else None

    def add(self, value_mb: float, at_s: float, weight: float = 1.0) -> Histogram:
        """With one more sample. One that comes late, of an earlier time, has the weight of its age."""
        shifted = self._shifted_for(at_s)
        doubled = (at_s - shifted.reference_s) / self.half_life_s
        return shifted._changed(value_mb, _halved(weight, -doubled))

    def remove(self, value_mb: float, at_s: float, weight: float = 1.0) -> Histogram:
        """Without a sample that was added with the same arguments. What is no longer there is not missed."""
        doubled = (at_s - self.reference_s) / self.half_life_s
        return self._changed(value_mb, -_halved(weight, -doubled)) if self.buckets else self

    def percentile(self, q: float) -> float | None:
        """The upper edge (MiB) of the first bucket up to which this share of the weight lies. None: no sample."""
        found = self._bucket(q)
        return None if found is None else max(edge_mb(found.number), found.highest_mb if found.number == LAST else 0.0)

    def limits(self, q: float) -> list[tuple[float, float]]:
        """Every limit (MiB) that would do for at least this share of the weight, falling, with the share that lies above it.

        The first one is the largest sample itself, with nothing above; the others are edges. Empty: no sample.
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
        """The same shape with another weight: 0.25 makes every sample count as a quarter of a new one."""
        return self._with(bucket._replace(weight=bucket.weight * weight) for bucket in self.buckets)

    def merge(self, other: Histogram) -> Histogram:
        """The samples of both. Their half-lives must be equal."""
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
        """At most 4 KB of plain data, however many samples there were."""
        return {
            "halfLifeS": self.half_life_s,
            "referenceS": self.reference_s,
            "bucket": [bucket.number for bucket in self.buckets],
            "weight": [int(bucket.weight) if bucket.weight.is_integer() else bucket.weight for bucket in self.buckets],
            "highestMb": [bucket.highest_mb for bucket in self.buckets],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Histogram:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError on anything else."""
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
        """With a reference from which a sample at this time has a small weight. By whole half-lives: nothing is rounded."""
        if not self.buckets:
            return replace(self, reference_s=at_s)
        halvings = math.floor((at_s - self.reference_s) / self.half_life_s)
        if halvings < SHIFT_AFTER:
            return self
        shifted = replace(self, reference_s=self.reference_s + halvings * self.half_life_s)
        return shifted._with(bucket._replace(weight=_halved(bucket.weight, halvings)) for bucket in self.buckets)

    def _changed(self, value_mb: float, weight: float) -> Histogram:
        """With more or, where `weight` is negative, less weight in a value's bucket."""
        value_mb = math.ceil(value_mb * 10 - SLIGHT) / 10  # upwards: what is kept is never less than what was used
        number = number_of(value_mb)
        place = bisect_left(self.buckets, (number,))
        here = self.buckets[place : place + 1]
        known = here[0] if here and here[0].number == number else Bucket(number, 0.0, 0.0)
        left = round(known.weight + weight, DIGITS)
        # A sample that is taken away leaves nothing behind, whatever was rounded in between.
        some = left >= SMALLEST and left > -RESIDUE * weight
        kept = (Bucket(number, left, max(known.highest_mb, value_mb)),) if some else ()
        after = self.buckets[place + (known.weight > 0) :]
        changed = (*self.buckets[:place], *kept, *after)
        return Histogram(self.half_life_s, self.reference_s, _few(changed))

    def _with(self, buckets: Iterable[Bucket]) -> Histogram:
        """With these, rounded to what is stored, in constant space."""
        rounded = (Bucket(number, round(weight, DIGITS), highest_mb) for number, weight, highest_mb in buckets)
        return replace(self, buckets=_few(tuple(bucket for bucket in rounded if bucket.weight >= SMALLEST)))


def _few(buckets: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
    """No more than there may be."""
    while len(buckets) > MOST_BUCKETS:
        lowest, second, *others = buckets
        buckets = (second._replace(weight=round(lowest.weight + second.weight, DIGITS)), *others)
    return buckets


def _halved(weight: float, halvings: float) -> float:
    """A weight after so many half-lives; negative ones double it."""
    return weight * math.pow(2.0, -max(-1000.0, min(1000.0, halvings)))
