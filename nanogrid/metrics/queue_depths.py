"""Depths and ages of a worker's queues, checked in the background and not at a scrape.

The rule: an age is an estimate from what this worker itself has seen. SQS reports the true age of the oldest message to
CloudWatch only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nanogrid.connections.sqs import sqs_client
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.queues import Addresses, QueueDepth
from nanogrid.sqs.transport.poll_status import poll_statuses

SURELY_EMPTY = 2
"""A queue counts as empty after this many checks in a row found no message: SQS' counts are approximate."""


@dataclass
class QueueObservation:
    """What the checks of one queue found. Times are seconds since 1970."""

    first_at: float
    at: float
    depth: QueueDepth
    empty_checks: int = 0
    empty_at: float | None = None
    """When the queue was last known to be empty."""

    def update(self, depth: QueueDepth, at: float) -> None:
        """Add the result of another check."""
        self.depth, self.at = depth, at
        self.empty_checks = self.empty_checks + 1 if depth.visible == 0 else 0
        if self.empty_checks >= SURELY_EMPTY:
            self.empty_at = at


def oldest_age_s(observation: QueueObservation, newest_received_at: float | None, now: float) -> float:
    """Estimate how long the oldest message has waited; 0 if none waits.

    Queues deliver roughly in the order of sending. A waiting message was therefore sent after the youngest message that this
    worker received, and after the queue was empty. Without either, it has waited at least since the first check.
    """
    if observation.depth.visible == 0:
        return 0.0
    known = [at for at in (newest_received_at, observation.empty_at) if at is not None]
    return max(0.0, now - (max(known) if known else observation.first_at))


class QueueDepths:
    """Checks the queues that `names` returns. Looks their addresses up once. One thread at a time may call `check`.

    All mutable state: `observations` by queue, replaced as a whole, so that other threads may read it.
    """

    def __init__(self, settings: Settings, names: Callable[[], Iterable[str]]) -> None:
        # A check creates no queue, even if the worker may.
        self._settings = settings.model_copy(update={"create_queues": False})
        self._names = names
        self._client: Any = None
        self._addresses: dict[str, Addresses] = {}
        self.observations: dict[str, QueueObservation] = {}

    def connect(self) -> None:
        """Create the client now, so that no thread does it."""
        self._client = self._client or sqs_client(self._settings)

    def check(self) -> str:
        """Check every queue and return the result in words. Raises what queues.depth raises for the first that fails."""
        self.connect()
        observations = {name: self._observe(name) for name in list(self._names())}
        self.observations = observations
        return f"{len(observations)} queues answer"

    def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            self._client.close()

    def ages_s(self) -> dict[str, float]:
        """Return the age of the oldest message of each queue, as of now."""
        now, read = time.time(), poll_statuses()
        return {
            name: oldest_age_s(observation, read[name].newest_sent_at if name in read else None, now)
            for name, observation in self.observations.items()
        }

    def _observe(self, name: str) -> QueueObservation:
        try:
            if name not in self._addresses:
                self._addresses[name] = queues.addresses(name, self._settings, self._client)
            depth = queues.depth(name, self._addresses[name], self._client)
        except Exception:
            self._addresses.pop(name, None)  # the queue may have been deleted and created again
            raise
        now = time.time()
        before = self.observations.get(name)
        observation = QueueObservation(now, now, depth) if before is None else QueueObservation(**vars(before))
        observation.update(depth, now)
        return observation
