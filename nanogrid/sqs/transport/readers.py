"""What this process knows of the queues that it reads: whether they answer, and how far it has come.

The rule: written by the event loop alone, one plain value at a time; read by anybody without a lock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass
class Reading:
    """One queue. `newest_sent_at` is when the youngest message that was received was sent (seconds since 1970, SQS' clock)."""

    polled_at: float = 0.0
    """When the last poll began."""
    failing: bool = False
    """Whether the last poll failed."""
    received: int = 0
    refused: int = 0
    """Messages that held no request, given back."""
    failures: int = 0
    newest_sent_at: float | None = None

    def poll_began(self) -> None:
        """SQS is asked."""
        self.polled_at = time.time()

    def poll_failed(self) -> None:
        """SQS did not answer, or with an error."""
        self.failures += 1
        self.failing = True

    def poll_answered(self) -> None:
        """SQS answered, with messages or without."""
        self.failing = False

    def message(self, sent_at_ms: float | None) -> None:
        """A message was received. None: SQS did not say when it was sent."""
        self.received += 1
        if sent_at_ms is not None:
            self.newest_sent_at = max(self.newest_sent_at or 0.0, sent_at_ms / 1000)


_readings: dict[str, Reading] = {}


def reading(queue: str) -> Reading:
    """What is known of a queue, by its own name."""
    return _readings.setdefault(queue, Reading())


def readings() -> Mapping[str, Reading]:
    """All queues that this process has polled."""
    return MappingProxyType(_readings)
