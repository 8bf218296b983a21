"""Whether a worker stands still: it holds requests, has children that are free, and none takes any.

The rule: what is looked at is what should never be so for long, whatever causes it, known or not. Time is given, never read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """A worker at one moment. `accepted` counts all requests that children have begun since the worker's start."""

    waiting: int
    """Requests that are held, are due, and that no child has begun."""
    free: int
    """Children that have no request in hand."""
    accepted: int


class Stall:
    """Told of each look in turn, by one thread; read by any."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: float | None = None
        self._last = Look(0, 0, 0)

    def look(self, now_s: float, found: Look) -> None:
        """Take in how the worker is now."""
        goes_on = found.accepted != self._last.accepted or not found.waiting or found.free <= 0
        if goes_on:
            self._since = None
        elif self._since is None:
            self._since = now_s
        self._last = found

    def lasted_s(self, now_s: float) -> float:
        """How long nothing has gone on; 0 while it does."""
        since = self._since
        return 0.0 if since is None else now_s - since

    def problem(self, now_s: float) -> str | None:
        """What is wrong, once it has lasted."""
        lasted_s, found = self.lasted_s(now_s), self._last
        if lasted_s < self._after_s:
            return None
        return f"{found.waiting} request(s) have been held for {lasted_s:.0f} s, and {found.free} free child(ren) take none"
