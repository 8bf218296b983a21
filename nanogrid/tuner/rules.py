"""The parameters of the tuner. Memory in MiB, times in seconds, shares between 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """A recommendation is the peak memory plus a margin, rounded up to the step, between floor and ceiling.

    `percentile` is the error budget of a function: at least this share of its runs must fit. Within the budget the cheapest
    limit is chosen: every run holds a larger one, and a smaller one makes some runs repeat. The margin is `margin` at the
    minimum number of samples and shrinks towards `least_margin` as they grow: about one run in ten exceeds the maximum of
    the ten before it, one in a thousand the maximum of a thousand.
    """

    percentile: float = 0.99
    margin: float = 0.1
    least_margin: float = 0.01
    step_mb: int = 16
    floor_mb: int = 32
    ceiling_mb: int = 10240
    minimum_samples: int = 10
    half_life_s: float = 86400.0
    new_code_weight: float = 0.5
    """The weight of a sample once the function has new code."""

    backoff_s: float = 600.0
    """How long a function gets its requested limit after an OOM kill under a lowered one, at most ..."""

    backoff_runs: int = 5
    """... and for how many runs at most: a function that runs often shows sooner what it needs."""

    hold_s: float = 600.0
    """How long a limit is kept before a lower one replaces it. A higher one replaces it at once."""

    oom_bump_mb: float = 100.0
    oom_bump_ratio: float = 1.2

    def margin_of(self, samples: float) -> float:
        """Return the margin for this many samples, as a share: 0.15 is 15 %."""
        shrunk = self.minimum_samples / samples if samples > self.minimum_samples else 1.0
        return self.least_margin + max(0.0, self.margin - self.least_margin) * shrunk

    def needed_mb(self, used_mb: float) -> float:
        """Estimate the need of a run that was out of memory at `used_mb`."""
        return max(used_mb + self.oom_bump_mb, used_mb * self.oom_bump_ratio)

    def rounded(self, memory_mb: float) -> int:
        """Round up to the step, not below the floor and not above the ceiling."""
        steps = math.ceil(memory_mb / self.step_mb - 1e-9) * self.step_mb
        return max(self.floor_mb, min(self.ceiling_mb, steps))
