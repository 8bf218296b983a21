"""The numbers that the tuner goes by. Memory in MiB, times in seconds, shares between 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """A recommendation is what the peaks need with a margin, rounded up to the step, between floor and ceiling.

    `percentile` is the error budget of a function: at least so much of its runs must fit. Above it the cheapest limit is taken: a
    larger one is held by every run, a smaller one makes some of them run twice. The margin is `margin` at the minimum of
    samples and shrinks towards `least_margin` as they grow: about one run in ten exceeds the highest of ten before it, one in a thousand
    that of a thousand.
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
    """What a sample counts once the function has other code."""

    backoff_s: float = 600.0
    """How long a function has its requested limit after an OOM under a lowered one, at most ..."""

    backoff_runs: int = 5
    """... and for how many runs at most: one that runs all the time has shown sooner what it needs."""

    hold_s: float = 600.0
    """How long a limit stands before a lower one follows it; a higher one follows at once."""

    oom_bump_mb: float = 100.0
    oom_bump_ratio: float = 1.2

    def margin_of(self, samples: float) -> float:
        """The margin after so many samples, as a share: 0.15 is 15 %."""
        shrunk = self.minimum_samples / samples if samples > self.minimum_samples else 1.0
        return self.least_margin + max(0.0, self.margin - self.least_margin) * shrunk

    def needed_mb(self, used_mb: float) -> float:
        """What a run that was out of memory after so much is taken to need."""
        return max(used_mb + self.oom_bump_mb, used_mb * self.oom_bump_ratio)

    def rounded(self, memory_mb: float) -> int:
        """Up to the step, not below the floor and not above the ceiling."""
        steps = math.ceil(memory_mb / self.step_mb - 1e-9) * self.step_mb
        return max(self.floor_mb, min(self.ceiling_mb, steps))
