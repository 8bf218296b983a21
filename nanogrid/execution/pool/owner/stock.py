"""Every container of this worker, and every request that waits for one, behind one lock.

Runs in: threads of the worker's main process. Thread-safe.

The rule: under the lock only plain data is read and changed; the callers start, clean and remove containers after it is released.

    records               which containers exist; changes their states
    waiters               which requests wait
    policy                what a request gets, decided on `Pooled.facts`
    retained_containers   what children retain, and when it is taken back
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from nanogrid.errors import PoolExhaustedError
from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.pool.owner.policy import (
    EVICTABLE,
    Bounds,
    ContainerKind,
    Create,
    Decision,
    Demand,
    Reuse,
    UsePrewarmed,
)
from nanogrid.execution.pool.owner.pool_counters import GIVEN_UP, GRANTED, Eviction, PoolCounter, PoolCounters
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.records import Records
from nanogrid.execution.pool.owner.retained_containers import RetainedContainers
from nanogrid.execution.pool.owner.view import View, view
from nanogrid.execution.pool.owner.waiters import Grant, Waiter, Waiters
from nanogrid.execution.pool.retained import Retention
from nanogrid.execution.pool.states import State
from nanogrid.result import StartKind

CHECK_EVERY_S = 0.5
"""How often a request that waits checks that its child is still there."""
PAUSE_WAIT_S = 0.5
"""How long a request waits for its own container to be paused. That takes milliseconds, unless the engine hangs."""


@dataclass
class _Changes:
    """What must be done after the lock is released: remove the evicted containers, clean those that were taken back."""

    evicted: list[Pooled] = field(default_factory=list)
    taken_back: list[Pooled] = field(default_factory=list)


class Stock:
    """All mutable state: `_records`, `_waiters` and `_closed`, guarded by `_lock`.

    Both callbacks are called outside the lock: `evicted` with containers that must be removed, `taken_back` with a container
    that must be cleaned because it was taken back from a child.
    """

    def __init__(
        self, bounds: Bounds, evicted: Callable[[Sequence[Pooled]], None], taken_back: Callable[[Pooled], None]
    ) -> None:
        self.bounds = bounds
        self.counters = PoolCounters()
        self._evicted = evicted
        self._taken_back = taken_back
        self._lock = threading.Lock()
        self._records = Records()
        self._retained = RetainedContainers(self._records, self.counters)
        self._waiters = Waiters()
        self._closed = False
        self.may_refill = self._records.may_refill

    def __repr__(self) -> str:
        counts = Counter(pooled.state.value for pooled in self.all())
        return f"<Stock {dict(counts)} waiting={len(self._waiters)}>"

    # -- questions

    def all(self) -> list[Pooled]:
        """Every container, including those in ENDING."""
        with self._lock:
            return list(self._records)

    def all_without_lock(self) -> list[Pooled]:
        """Every container, in a forked child: a thread that does not exist there may hold the lock."""
        return list(self._records)

    def views(self) -> list[View]:
        """Every container as it is shown now."""
        with self._lock:
            return [view(pooled) for pooled in self._records]

    def starts(self) -> dict[StartKind, int]:
        """How many runs have got a container, by kind of start. Runs in a retained container count when they have ended."""
        with self._lock:
            counts = {kind: self.counters.of(PoolCounter.STARTS, kind.value) for kind in StartKind}
            counts[StartKind.WARM] += self._retained.runs_without_owner()
            return counts

    def waiting(self) -> int:
        """How many requests wait. None of them is in the middle of a decision."""
        with self._lock:
            return len(self._waiters)

    # -- a request

    def acquire(
        self,
        demand: Demand,
        *,
        image: str,
        limits: Confinement,
        request_id: str,
        wait_s: float,
        still_wanted: Callable[[], bool] = lambda: True,
        retention: Retention | None = None,
    ) -> Grant:
        """A container for a request, when its turn has come. With `retention` the child may retain the container.

        Raises PoolExhaustedError if none came free within `wait_s`, or if the request is not wanted any more.
        """
        waiter = Waiter(demand, image, limits, request_id, retention)
        with self._change():
            if self._closed:
                raise PoolExhaustedError("the worker is stopping: it leases no more containers")
            self._waiters.add(waiter)
        if waiter.must_wait:
            self._await(waiter, wait_s, still_wanted)
            self.counters.add(PoolCounter.WAITS, GIVEN_UP if waiter.grant is None else GRANTED)
        if waiter.grant is None:
            raise PoolExhaustedError(f"no container came free within {wait_s:g} s: {waiter.reason}")
        return waiter.grant

    def _await(self, waiter: Waiter, wait_s: float, still_wanted: Callable[[], bool]) -> None:
        """Wait until the request is served, turned away, or not wanted any more. It is not in the queue afterwards."""
        began = time.monotonic()
        while not waiter.wait(min(CHECK_EVERY_S, max(0.0, began + wait_s - time.monotonic()))):
            waited_s = time.monotonic() - began
            if waited_s >= wait_s or not still_wanted():
                with self._change():  # serves those that it blocked
                    self._waiters.discard(waiter)
                return
            if waiter.demand.waits_for_pause and waited_s >= PAUSE_WAIT_S:
                with self._change():
                    waiter.demand = replace(waiter.demand, waits_for_pause=False)

    # -- moves

    def create(self, kind: ContainerKind, image: str, limits: Confinement) -> Pooled | None:
        """A record of a container to be prewarmed, which the caller must start. None if the stock is closed."""
        with self._lock:
            return None if self._closed else self._records.new(kind, image, limits)

    def move(self, pooled: Pooled, state: State, *, expected: State | None = None) -> bool:
        """Move a container into another state. False, and no change, if its state is not the expected one any more."""
        with self._change():
            if expected is not None and pooled.state is not expected:
                return False
            self._records.move(pooled, state)
        return True

    def end_lease(self, pooled: Pooled, retention: Retention | None) -> bool:
        """End a lease. True if the caller must clean or remove the container.

        False if there is nothing to do: the container was at rest and goes back to the pool, or it belongs to a newer lease.
        """
        with self._change() as changes:
            if pooled.retention is not retention:
                return False
            if back := self._retained.take_back([pooled]):
                changes.taken_back += back
                return False
            self._retained.end(pooled)
        return True

    def take_back(self, containers: Iterable[Pooled], *, after_run: bool = False) -> None:
        """Take retained containers back that are at rest; with `after_run` the others as soon as their run has ended."""
        take = self._retained.ask_back if after_run else self._retained.take_back
        with self._change() as changes:
            changes.taken_back += take(containers)

    def evict(self, numbers: Iterable[int], reason: Eviction | None = None) -> None:
        """Evict those of these containers that are not in use. Without a reason it is not counted."""
        with self._change() as changes:
            found = [self._records[number] for number in numbers if number in self._records]
            gone = [pooled for pooled in found if pooled.state in EVICTABLE]
            for pooled in gone:
                self._records.move(pooled, State.ENDING)
            changes.evicted += gone
            if reason is not None and gone:
                self.counters.add(PoolCounter.EVICTIONS, reason.value, len(gone))

    def forget(self, pooled: Pooled) -> None:
        """Remove the record of a container that is gone."""
        with self._change():
            self._records.remove(pooled)

    def close(self) -> None:
        """Lease no more containers, and turn away every request that waits."""
        with self._lock:
            self._closed = True
            self._waiters.close("the worker is stopping")

    # -- under the lock

    @contextmanager
    def _change(self) -> Iterator[_Changes]:
        """Change something under the lock and serve the requests that wait. What this causes is done outside the lock."""
        changes = _Changes()
        with self._lock:
            yield changes
            self._serve(changes)
        if changes.evicted:
            self._evicted(changes.evicted)
        for pooled in changes.taken_back:
            self._taken_back(pooled)

    def _serve(self, changes: _Changes) -> None:
        def decide(demand: Demand) -> Decision:
            decision, back = self._retained.decide(demand, self.bounds)
            changes.taken_back += back
            return decision

        def grant(waiter: Waiter, decision: Reuse | UsePrewarmed | Create) -> Grant:
            for number in decision.evict:
                self._records.move(self._records[number], State.ENDING)
                changes.evicted.append(self._records[number])
                self.counters.add(PoolCounter.EVICTIONS, Eviction.ROOM.value)
            return self._grant(waiter, decision)

        if self._waiters:
            self._waiters.serve(decide, grant)

    def _grant(self, waiter: Waiter, decision: Reuse | UsePrewarmed | Create) -> Grant:
        if isinstance(decision, Create):
            pooled, start = self._records.new(waiter.demand.kind, waiter.image, waiter.limits), StartKind.COLD
        else:
            pooled = self._records[decision.number]
            start = StartKind.WARM if isinstance(decision, Reuse) else StartKind.PREWARMED
        pooled.key, pooled.function_id = waiter.demand.key, waiter.demand.function_id
        pooled.request_id, pooled.promised_mb = waiter.request_id, waiter.limits.memory_mb
        self._retained.lend(pooled, waiter.retention, waiter.request_id)
        if start is StartKind.COLD:
            pooled.facts = pooled.current_facts()
        else:
            self._records.move(pooled, State.LEASED)
        return Grant(pooled, start)
