"""Detects a stalled worker: it holds requests and has free children, but no child starts a request.

The rule: the check detects a condition that must never persist, whatever its cause. Callers pass the time; nothing
here reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerSnapshot:
    """A worker at one moment. `accepted` counts all requests that children have started since the worker's start."""

    waiting: int
    """Requests that the worker holds, that are due, and that no child has started."""
    free: int
    """Children that run no request."""
    accepted: int


class StallDetector:
    """Checks snapshots in turn. One thread calls `check`; any thread may read."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: float | None = None
        self._last = WorkerSnapshot(0, 0, 0)

    def check(self, now_s: float, snapshot: WorkerSnapshot) -> None:
        """Compare a snapshot with the last one."""
        progress = snapshot.accepted != self._last.accepted or not snapshot.waiting or snapshot.free <= 0
        if progress:
            self._since = None
        elif self._since is None:
            self._since = now_s
        self._last = snapshot

    def lasted_s(self, now_s: float) -> float:
        """Return how long the worker has made no progress, 0 while it makes any."""
        since = self._since
        return 0.0 if since is None else now_s - since

    def problem(self, now_s: float) -> str | None:
        """Return what is wrong, once the stall has lasted long enough."""
        lasted_s, last = self.lasted_s(now_s), self._last
        if lasted_s < self._after_s:
            return None
        return (
            f"{last.waiting} request(s) have been held for {lasted_s:.0f} s, and {last.free} free child(ren) start none"
        )
