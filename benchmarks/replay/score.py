"""A function's day under a policy, in simulated time, and its result.

The rule: a run that is out of memory under less than it asked for runs again with what it asked for, and all that its first attempt held is
waste. A policy hears of a run when it has ended, so runs that overlap know nothing of each other.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.replay.day import Function, Run
from benchmarks.replay.policies import Policy
from nanogrid.result import Outcome
from nanogrid.tuner.record import Sample

GB_MS = 1024 * 1000


@dataclass
class Score:
    """Sums over runs. GB-seconds are limit (or use) times duration."""

    runs: float = 0.0
    reruns: float = 0.0
    held_gb_s: float = 0.0
    used_gb_s: float = 0.0
    unused_gb_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Memory that was held but not used, by cause."""

    @property
    def slack(self) -> float:
        """The share of the held memory that was not used."""
        return 1 - self.used_gb_s / self.held_gb_s if self.held_gb_s else 0.0

    @property
    def rerun_share(self) -> float:
        """The share of the runs that were re-run."""
        return self.reruns / self.runs if self.runs else 0.0

    def add(self, other: Score, weight: float = 1.0) -> None:
        """Add these runs, each counted this many times."""
        self.runs += other.runs * weight
        self.reruns += other.reruns * weight
        self.held_gb_s += other.held_gb_s * weight
        self.used_gb_s += other.used_gb_s * weight
        for cause, unused in other.unused_gb_s.items():
            self.unused_gb_s[cause] += unused * weight


Cause = Callable[[Run, int], dict[str, float]]
"""What a run left unused under a limit, in MiB by cause."""


def replayed(function: Function, policy: Policy, causes: Cause | None = None) -> Score:
    """The day of one function; each of its runs counts once."""
    score = Score()
    ended: list[tuple[float, int, Sample]] = []
    for number, run in enumerate(function.runs):
        while ended and ended[0][0] <= run.at_s:
            policy.learn(heapq.heappop(ended)[2])
        limit_mb = policy.limit_mb(function.requested_mb, run.code, run.at_s)
        at_s = run.at_s
        score.runs += 1
        killed = run.peak_mb > limit_mb
        if killed:
            # Memory grows evenly, and the kernel kills the run when it would exceed the limit.
            lasted_ms = run.duration_ms * limit_mb / run.peak_mb
            at_s += lasted_ms / 1000
            wasted = limit_mb * lasted_ms / GB_MS
            score.reruns += 1
            score.held_gb_s += wasted
            score.unused_gb_s["first attempts"] += wasted
            sample = _sample(function, run, at_s, limit_mb, limit_mb, lasted_ms, killed=True)
            heapq.heappush(ended, (at_s, 2 * number, sample))
            limit_mb = function.requested_mb
        at_s += run.duration_ms / 1000
        score.held_gb_s += limit_mb * run.duration_ms / GB_MS
        score.used_gb_s += run.peak_mb * run.duration_ms / GB_MS
        parts = {"second attempts": limit_mb - run.peak_mb} if killed else causes(run, limit_mb) if causes else {}
        for cause, unused_mb in parts.items():
            score.unused_gb_s[cause] += unused_mb * run.duration_ms / GB_MS
        sample = _sample(function, run, at_s, run.peak_mb, limit_mb, run.duration_ms, rerun=killed)
        heapq.heappush(ended, (at_s, 2 * number + 1, sample))
    return score


def held_fixed(function: Function, limit_mb: int) -> Score:
    """The same for one fixed limit all day, without a tuner."""
    limit_mb = min(limit_mb, function.requested_mb)
    held = used = reruns = 0.0
    for _, peak_mb, duration_ms, _ in function.runs:
        used += peak_mb * duration_ms
        if peak_mb > limit_mb:
            reruns += 1
            held += (function.requested_mb + limit_mb * limit_mb / peak_mb) * duration_ms
        else:
            held += limit_mb * duration_ms
    return Score(len(function.runs), reruns, held / GB_MS, used / GB_MS)


def _sample(
    function: Function,
    run: Run,
    at_s: float,
    peak_mb: float,
    limit_mb: int,
    duration_ms: float,
    *,
    killed: bool = False,
    rerun: bool = False,
) -> Sample:
    return Sample(
        at_s=at_s,
        peak_mb=peak_mb,
        outcome=Outcome.OUT_OF_MEMORY if killed else Outcome.SUCCEEDED,
        duration_ms=duration_ms,
        cpu_ms=None,
        limit_mb=limit_mb,
        requested_mb=function.requested_mb,
        code=run.code,
        lowered=limit_mb < function.requested_mb,
        rerun=rerun,
    )
