"""How much waits in the queues of a worker, looked up now and then and not when somebody asks.

The rule: an age is said for what the worker itself has seen. SQS tells the true age of the oldest message to CloudWatch only.
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
"""Looks in a row that must find nothing before a queue counts as empty: SQS' counts are approximate."""


@dataclass
class Seen:
    """What the looks at one queue found. Times are seconds since 1970."""

    first_at: float
    at: float
    depth: QueueDepth
    empty_looks: int = 0
    empty_at: float | None = None
    """When it was surely empty last."""

    def found(self, depth: QueueDepth, at: float) -> None:
        """Another look."""
        self.depth, self.at = depth, at
        self.empty_looks = self.empty_looks + 1 if depth.visible == 0 else 0
        if self.empty_looks >= SURELY_EMPTY:
            self.empty_at = at


def oldest_age_s(seen: Seen, newest_received_at: float | None, now: float) -> float:
    """How long the oldest message has waited, as far as can be told; 0 where none waits.

    Queues are read roughly in the order of sending, so what waits was sent after the youngest message that was received,
    and after the queue was empty. Without either it has waited at least since the first look.
    """
    if seen.depth.visible == 0:
        return 0.0
    known = [at for at in (newest_received_at, seen.empty_at) if at is not None]
    return max(0.0, now - (max(known) if known else seen.first_at))


class QueueLook:
    """Looks at the queues that `names` names. Addresses are looked up once. Used by one thread at a time.

    All mutable state: `seen` by queue, replaced as a whole, so that others may read it.
    """

    def __init__(self, settings: Settings, names: Callable[[], Iterable[str]]) -> None:
        # A look creates nothing, whatever the worker may create.
        self._settings = settings.model_copy(update={"create_queues": False})
        self._names = names
        self._client: Any = None
        self._addresses: dict[str, Addresses] = {}
        self.seen: dict[str, Seen] = {}

    def connect(self) -> None:
        """Make the client, so that no thread has to."""
        self._client = self._client or sqs_client(self._settings)

    def look(self) -> str:
        """Look at every queue; what was found, in words. Raises what queues.depth raises, for the first that fails."""
        self.connect()
        names = list(self._names())
        found = {name: self._found(name) for name in names}
        self.seen = found
        return f"{len(found)} queues answer"

    def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            self._client.close()

    def ages_s(self) -> dict[str, float]:
        """The age of the oldest message of each queue, now."""
        now, read = time.time(), poll_statuses()
        return {
            name: oldest_age_s(seen, read[name].newest_sent_at if name in read else None, now)
            for name, seen in self.seen.items()
        }

    def _found(self, name: str) -> Seen:
        try:
            if name not in self._addresses:
                self._addresses[name] = queues.addresses(name, self._settings, self._client)
            depth = queues.depth(name, self._addresses[name], self._client)
        except Exception:
            self._addresses.pop(name, None)  # it may have been deleted, and made anew
            raise
        now = time.time()
        before = self.seen.get(name)
        seen = Seen(now, now, depth) if before is None else Seen(**vars(before))
        seen.found(depth, now)
        return seen
