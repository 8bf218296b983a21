"""What this process knows of the queues that it polls: whether SQS answers, and what it has received.

The rule: only the event loop writes, one plain value at a time. Any thread may read without a lock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass
class PollStatus:
    """The polls of one queue."""

    polled_at: float = 0.0
    """When the last poll started, in seconds since 1970."""
    failing: bool = False
    """Whether the last poll failed."""
    received: int = 0
    """Messages received."""
    refused: int = 0
    """Messages given back because they held no usable request."""
    failures: int = 0
    """Polls that failed."""
    newest_sent_at: float | None = None
    """When the youngest received message was sent, in seconds since 1970 by SQS's clock."""

    def poll_started(self) -> None:
        """Record that a poll started."""
        self.polled_at = time.time()

    def poll_failed(self) -> None:
        """Record a poll without an answer, or with an error as the answer."""
        self.failures += 1
        self.failing = True

    def poll_answered(self) -> None:
        """Record an answer, with or without messages."""
        self.failing = False

    def message_received(self, sent_at_ms: float | None) -> None:
        """Record a message. None: SQS did not report when it was sent."""
        self.received += 1
        if sent_at_ms is not None:
            self.newest_sent_at = max(self.newest_sent_at or 0.0, sent_at_ms / 1000)


_statuses: dict[str, PollStatus] = {}


def poll_status(queue: str) -> PollStatus:
    """The status of a queue, by its own name. The first call creates it."""
    return _statuses.setdefault(queue, PollStatus())


def poll_statuses() -> Mapping[str, PollStatus]:
    """The status of every queue that this process has polled, by name."""
    return MappingProxyType(_statuses)
