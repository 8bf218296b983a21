"""Containers that children retain between two runs, as the owner sees them: lend them, take them back, count their runs.

Runs in: threads of the worker's main process, under the stock's lock. Taking a token never blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from nanogrid.execution.pool.owner import policy
from nanogrid.execution.pool.owner.policy import Bounds, Decision, Demand, Reuse, Wait, WaitFor
from nanogrid.execution.pool.owner.pool_counters import PoolCounter, PoolCounters
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.records import Records
from nanogrid.execution.pool.retained import Retention
from nanogrid.execution.pool.states import State
from nanogrid.result import StartKind


class RetainedContainers:
    """Those of the records that have a `retention`. Not thread-safe: the stock guards it.

    Containers that are taken back are CLEANING. The methods return them, and the stock hands them to the cleaner.
    """

    def __init__(self, records: Records, counters: PoolCounters) -> None:
        self._records = records
        self._counters = counters

    def lend(self, pooled: Pooled, retention: Retention | None, request_id: str) -> None:
        """Start a lease. With `retention` the child may retain the container afterwards."""
        pooled.retention = retention
        if retention is not None:
            retention.page.clear()
            retention.page.begin(request_id)

    def end(self, pooled: Pooled) -> None:
        """End the lease: no child can take this container any more. Count the runs that did not ask the owner."""
        if pooled.retention is not None:
            pooled.runs += pooled.retention.page.runs
            self._counters.add(PoolCounter.STARTS, StartKind.WARM.value, pooled.retention.runs_without_owner())
            pooled.retention = None

    def runs_without_owner(self) -> int:
        """How many ended runs are not counted yet, because their leases go on."""
        return sum(pooled.retention.runs_without_owner() for pooled in self._records if pooled.retention is not None)

    def take_back(self, containers: Iterable[Pooled]) -> list[Pooled]:
        """Take back those of these containers that are at rest right now."""
        back = []
        for pooled in containers:
            if pooled.retention is not None and pooled.retention.token.take():
                pooled.rested_since, pooled.request_id = pooled.retention.page.since, None
                self.end(pooled)
                self._records.move(pooled, State.CLEANING)
                back.append(pooled)
        return back

    def ask_back(self, containers: Iterable[Pooled]) -> list[Pooled]:
        """Take back those that are at rest right now, and ask the children of the others to give them back after their run.

        The child is asked before its token is tried, so that a run that ends in between is not missed.
        """
        retained = []
        for pooled in containers:
            if pooled.retention is not None:
                pooled.retention.page.wanted_back = True
                retained.append(pooled)
        return self.take_back(retained)

    def decide(self, demand: Demand, bounds: Bounds) -> tuple[Decision, list[Pooled]]:
        """The policy's decision for a request, and what was taken back for it.

        A retained container of the same code at rest is better than a new one. Whatever makes a request wait for room, or for
        the limit of its function, is asked back.
        """
        decision = policy.decide(demand, self._records.facts(), bounds)
        if isinstance(decision, Reuse) or (isinstance(decision, Wait) and decision.wait_for is WaitFor.CLEANING):
            return decision, []
        for pooled in self._records:
            same = (pooled.kind, pooled.key) == (demand.kind, demand.key)
            if same and (back := self.take_back([pooled])):
                return policy.decide(demand, self._records.facts(), bounds), back
        if not isinstance(decision, Wait) or decision.wait_for is WaitFor.PAUSE:
            return decision, []
        for_room = decision.wait_for is WaitFor.ROOM
        useful = [pooled for pooled in self._records if for_room or pooled.function_id == demand.function_id]
        if back := self.ask_back(useful):
            return policy.decide(demand, self._records.facts(), bounds), back
        return decision, []
