"""Messages that a busy worker receives before its children are free, so that one call receives many.

The rule: a waiting message belongs to the host that runs it soonest. A worker receives ahead only what it finished in the
last `PACE_S`, so it will start that within about the same time; what waits for `LONGEST_S` returns to its queue. Nothing of
Celery has seen a waiting message, so returning it costs no attempt. Only the event loop's thread uses this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from nanogrid.sqs.transport.batches import BATCH

PACE_S = 0.25
LONGEST_S = 1.0


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
        self._finished_at: deque[float] = deque(maxlen=BATCH)

    def __len__(self) -> int:
        return len(self._waiting)

    def finished(self) -> None:
        """Count a finished task."""
        self._finished_at.append(monotonic())

    def most(self) -> int:
        """How many messages may wait: as many as tasks have finished lately, at most as many as one call receives."""
        since = monotonic() - PACE_S
        return sum(at >= since for at in self._finished_at)

    def is_low(self) -> bool:
        """Whether so few messages wait that the next ones should be on their way."""
        return len(self._waiting) <= self.most() // 3

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
