"""Policies that set the limit of a function's next run: the tuner, and those it is compared with.

The rule: a policy knows past runs, never future ones.
"""

from __future__ import annotations

import math
from typing import Protocol

from nanogrid.result import Outcome
from nanogrid.tuner.advice import Advice, decide
from nanogrid.tuner.histogram import Histogram
from nanogrid.tuner.record import Record, Sample, learn
from nanogrid.tuner.rules import Rules


class Policy(Protocol):
    """One function's limits."""

    def limit_mb(self, requested_mb: int, code: str, now_s: float) -> int:
        """The limit of a run that starts now; never more than requested."""

    def learn(self, sample: Sample) -> None:
        """Learn from a run that has ended."""


class Requested:
    """No tuner."""

    def limit_mb(self, requested_mb: int, code: str, now_s: float) -> int:
        """The requested memory."""
        return requested_mb

    def learn(self, sample: Sample) -> None:
        """Learns nothing."""


class LastPeak:
    """A tip from one sample: the last peak and 40 %."""

    TIMES = 1.4

    def __init__(self) -> None:
        self._last_mb: float | None = None

    def limit_mb(self, requested_mb: int, code: str, now_s: float) -> int:
        """From the second run on."""
        return requested_mb if self._last_mb is None else min(requested_mb, math.ceil(self._last_mb * self.TIMES))

    def learn(self, sample: Sample) -> None:
        """Only measured peaks: after an OOM kill, the re-run's peak counts."""
        if sample.outcome is not Outcome.OUT_OF_MEMORY:
            self._last_mb = sample.peak_mb


class Vpa:
    """The default rule of Kubernetes' Vertical Pod Autoscaler for memory, with one sample for each run.

    90th percentile of a histogram with a half-life of 24 h, 15 % more, at least the floor; an OOM kill is a sample of 100 MB or 20 %
    more than was used. VPA has neither steps nor a minimum of samples; its buckets are wider than those used here.
    """

    def __init__(self, floor_mb: int = 0) -> None:
        self._floor_mb = floor_mb
        self._histogram = Histogram(86400.0)

    def limit_mb(self, requested_mb: int, code: str, now_s: float) -> int:
        """From the second run on."""
        peak_mb = self._histogram.percentile(0.9)
        return requested_mb if peak_mb is None else min(requested_mb, max(self._floor_mb, math.ceil(peak_mb * 1.15)))

    def learn(self, sample: Sample) -> None:
        """Every run, and every OOM kill."""
        assert sample.peak_mb is not None
        used_mb = sample.peak_mb
        killed = sample.outcome is Outcome.OUT_OF_MEMORY
        self._histogram = self._histogram.add(max(used_mb + 100, used_mb * 1.2) if killed else used_mb, sample.at_s)


class Tuner:
    """NanoGrid's complete tuner: insufficient data, back-off, hold, new code, re-runs."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.record = Record.empty(rules)
        self.advice: Advice | None = None

    def limit_mb(self, requested_mb: int, code: str, now_s: float) -> int:
        """The limit from the latest advice. Advice is not applied to code that it was not given for."""
        if self.advice is None or self.advice.code != code:
            return requested_mb
        return self.advice.under(requested_mb).limit_mb

    def learn(self, sample: Sample) -> None:
        """Learn from the run, and decide for the next one."""
        self.record = learn(self.record, sample, self.rules)
        self.advice = decide(self.record, sample.requested_mb, sample.code, self.rules, sample.at_s)
