"""Messages that a busy worker receives before its children are free, so that one call receives many.

The rule: a waiting message belongs to the host that runs it soonest. A worker receives ahead only what it can start within
`AHEAD_S`, judged by how long its last tasks took; what waits for `LONGEST_S` returns to its queue. Nothing of Celery has seen
a waiting message, so returning it costs no attempt. Only the event loop's thread uses this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from nanogrid.sqs.transport.batches import BATCH

AHEAD_S = 0.25
LONGEST_S = 1.0
"""How long a message may wait. While no task has ended for so long, none is received ahead."""

FEW = 3
"""Fewer tasks than this that end within `AHEAD_S` are no load."""


class Received(NamedTuple):
    """A message as SQS describes it, with its queue's name and URL, and when it was received by the monotonic clock."""

    queue: str
    url: str
    message: dict[str, Any]
    at: float

    @property
    def handle(self) -> str:
        """The receipt handle."""
        return str(self.message["ReceiptHandle"])


class Ahead:
    """The waiting messages, and how many there may be."""

    def __init__(self) -> None:
        self._waiting: deque[Received] = deque()
        self._started_at: dict[str, float] = {}
        self._finished: deque[tuple[float, float]] = deque(maxlen=BATCH)

    def __len__(self) -> int:
        return len(self._waiting)

    def started(self, handle: str) -> None:
        """A message was delivered: a child is free for it."""
        self._started_at[handle] = monotonic()

    def finished(self, handle: str, *, done: bool) -> None:
        """A delivered message's task has ended. Only those that are `done`, and not given back, say how long tasks take."""
        started_at = self._started_at.pop(handle, None)
        if started_at is not None and done:
            now = monotonic()
            self._finished.append((now, now - started_at))

    def most(self, at_once: int) -> int:
        """How many messages may wait if so many tasks are under way at once; at most as many as one call receives."""
        if not self._finished or self._finished[-1][0] < monotonic() - LONGEST_S:
            return 0
        mean_s = sum(duration_s for _, duration_s in self._finished) / len(self._finished)
        return BATCH if mean_s * BATCH <= AHEAD_S * at_once else int(AHEAD_S * at_once / mean_s)

    def is_load(self) -> bool:
        """Whether many tasks have ended lately."""
        since = monotonic() - AHEAD_S
        return sum(at >= since for at, _ in self._finished) >= FEW

    def add(self, received: Received) -> None:
        """Let a message wait."""
        self._waiting.append(received)

    def first(self) -> Received:
        """Remove the message that has waited longest and return it."""
        return self._waiting.popleft()

    def remove(self, which: Callable[[Received], bool]) -> list[Received]:
        """Remove the messages that `which` chooses, and return them."""
        removed = [each for each in self._waiting if which(each)]
        self._waiting = deque(each for each in self._waiting if each not in removed)
        return removed
