"""Measurements and goals: samples, goals and the lines of the table.

The rule: pure data and arithmetic. Nothing here measures, prints or reads a clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TIMES = "\N{MULTIPLICATION SIGN}"
"""The unit of a ratio."""

DASH = "\N{EN DASH}"
"""Stands for a missing value."""


@dataclass(frozen=True)
class Samples:
    """All measurements of one variant, in order."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """The 95th percentile."""
        return percentile(self.values, 0.95)


@dataclass(frozen=True)
class Goal:
    """A limit for a figure."""

    limit: float
    at_least: bool = False

    def is_met(self, figure: float) -> bool:
        """Whether the figure is within the limit, or equal to it."""
        return figure >= self.limit if self.at_least else figure <= self.limit


@dataclass(frozen=True)
class Line:
    """One figure of the table. A figure without a goal is for information."""

    what: str
    figure: float
    unit: str
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        """MET, NOT MET, or a dash without a goal."""
        if self.goal is None:
            return DASH
        return "MET" if self.goal.is_met(self.figure) else "NOT MET"


@dataclass(frozen=True)
class Measured:
    """What one row of the benchmark found. The first of `samples` is NanoGrid, its baselines follow."""

    row: str
    title: str
    samples: tuple[Samples, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of all values lie, interpolated linearly. Raises ValueError if there are none."""
    if not values:
        raise ValueError("a percentile needs at least one value: measure at least once")
    ordered = sorted(values)
    position = (len(ordered) - 1) * share
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def ratio(what: str, of: Samples, to: Samples, goal: Goal | None = None) -> Line:
    """The median of one variant as a multiple of another's median."""
    return Line(what, of.median / to.median, TIMES, goal)


def p95_ratio(what: str, of: Samples, to: Samples, goal: Goal | None = None) -> Line:
    """The 95th percentile of one variant as a multiple of another's *median*: the stricter of two readings."""
    return Line(what, of.p95 / to.median, TIMES, goal)


WARM_UP_SHARE = 0.2


def growth(values: Sequence[float], warm_up: float = WARM_UP_SHARE) -> float:
    """How much a figure grew over a long run: the median of its last third minus that of its first third.

    This share of the samples is warm-up and left out. Raises ValueError for fewer than five samples.
    """
    if len(values) < 5:
        raise ValueError(f"growth needs at least 5 samples, got {len(values)}")
    settled = values[int(len(values) * warm_up) :]
    third = max(1, len(settled) // 3)
    return statistics.median(settled[-third:]) - statistics.median(settled[:third])


def steady(what: str, values: Sequence[float], unit: str, *, tolerance: float, warm_up: float = WARM_UP_SHARE) -> Line:
    """The growth of a figure over a long run, compared with the noise."""
    return Line(f"{what}: growth", growth(values, warm_up), unit, Goal(tolerance))


def all_met(measured: Sequence[Measured]) -> bool:
    """Whether every line that has a goal meets it."""
    return all(line.verdict != "NOT MET" for row in measured for line in row.lines)
