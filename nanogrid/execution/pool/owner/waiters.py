"""The requests that wait for a container, first come, first served.

Runs in: threads of the worker's main process, under the stock's lock (except for `Waiter.wait`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.pool.owner.policy import (
    ContainerKind,
    Create,
    Decision,
    Demand,
    Reuse,
    UsePrewarmed,
    Wait,
    WaitFor,
)
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.retained import Retention
from nanogrid.result import StartKind


@dataclass(frozen=True)
class Grant:
    """A container for one request. If the start is COLD, the container must still be started."""

    pooled: Pooled
    start: StartKind


class Waiter:
    """One request. `reason` says why it has no container yet."""

    def __init__(
        self, demand: Demand, image: str, limits: Confinement, request_id: str, retention: Retention | None
    ) -> None:
        self.demand, self.image, self.limits = demand, image, limits
        self.request_id, self.retention = request_id, retention
        self.grant: Grant | None = None
        self.reason = ""
        self._done: threading.Event | None = None
        """Made only for a request that really waits."""

    @property
    def must_wait(self) -> bool:
        """Whether it was not served at once."""
        return self._done is not None

    def wait(self, timeout_s: float) -> bool:
        """Wait until the request is served or turned away. False after the timeout."""
        return self._done is None or self._done.wait(timeout_s)

    def defer(self, reason: str) -> None:
        """Let the request wait on, for this reason."""
        self.reason = reason
        self._done = self._done or threading.Event()

    def finish(self, grant: Grant | None, reason: str = "") -> None:
        """Serve the request, or turn it away with a reason."""
        self.grant, self.reason = grant, reason
        if self._done is not None:
            self._done.set()


class Waiters:
    """All mutable state: `_waiting`, in the order in which the requests came. Not thread-safe: the stock guards it."""

    def __init__(self) -> None:
        self._waiting: list[Waiter] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiter: Waiter) -> None:
        """Put a request at the end of the queue."""
        self._waiting.append(waiter)

    def discard(self, waiter: Waiter) -> None:
        """Remove a request that waits no longer, if it is still in the queue."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def serve(
        self,
        decide: Callable[[Demand], Decision],
        grant: Callable[[Waiter, Reuse | UsePrewarmed | Create], Grant],
    ) -> None:
        """Serve every request that can be served now. A request that waits for room blocks those behind it."""
        waiting: list[Waiter] = []
        ahead: dict[tuple[ContainerKind, str], int] = {}
        blocked = False
        for waiter in self._waiting:
            if blocked:
                waiter.defer("earlier requests wait for room")
                waiting.append(waiter)
                continue
            own = waiter.demand.kind, waiter.demand.key
            earlier = ahead.get(own, 0) if ahead else 0
            decision = decide(replace(waiter.demand, ahead=earlier) if earlier else waiter.demand)
            if isinstance(decision, Wait):
                waiter.defer(decision.reason)
                waiting.append(waiter)
                ahead[own] = earlier + 1
                blocked = decision.wait_for is WaitFor.ROOM
            else:
                waiter.finish(grant(waiter, decision))
        self._waiting = waiting

    def close(self, reason: str) -> None:
        """Turn every request away."""
        for waiter in self._waiting:
            waiter.finish(None, reason)
        self._waiting = []
