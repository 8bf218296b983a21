"""One child's leases, one after another, on the owner's side: lease a container, take it back or destroy it.

Runs in: one thread of the worker's main process for each connection.

The rule: a lease that ends without an `end` message destroys its container, unless the child retains the container at rest: then
nothing of the child is in it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nanogrid.errors import ContainerLostError, NanoGridError
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.hardening import MIB, Confinement
from nanogrid.execution.pool.owner.cleaner import Cleaner
from nanogrid.execution.pool.owner.images import Images
from nanogrid.execution.pool.owner.policy import ContainerKind, Demand
from nanogrid.execution.pool.owner.pool_counters import Eviction, PoolCounter
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.remover import remove
from nanogrid.execution.pool.owner.starter import Starter
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.owner.waiters import Grant
from nanogrid.execution.pool.protocol import PAGE, RUNNER, SPARE, TOKEN, LeasedContainer, Line, error_to_json
from nanogrid.execution.pool.retained import Retention, SharedPage, Token
from nanogrid.execution.pool.states import State
from nanogrid.result import StartKind

log = logging.getLogger(__name__)

CHOICES = 16
"""How many containers in a row a lease may find gone before it fails."""


class ChildSession:
    """The leases of one connection, at most one at a time. Used by one thread."""

    def __init__(
        self, line: Line, stock: Stock, starter: Starter, images: Images, cleaner: Cleaner, engine: Engine
    ) -> None:
        self._line = line
        self._stock = stock
        self._starter = starter
        self._images = images
        self._cleaner = cleaner
        self._engine = engine
        self._pooled: Pooled | None = None
        self._retention: Retention | None = None
        self._page: SharedPage | None = None
        self._reuses = starter.settings.idle_timeout_s > 0

    def begin(self, request: dict[str, Any], sent: Sequence[str] = ()) -> None:
        """Lease a container to the child, or send the error. A container that the child retains is taken back first.

        `sent` names the descriptors that came with the request.
        """
        self.end()
        if PAGE in sent:
            self._map_page(self._line.take_descriptor())
        self._retention = Retention(Token(), self._page) if self._page is not None else None
        try:
            pooled, leased = self._lease(request)
            descriptors = {}
            if pooled.link is not None:
                descriptors[RUNNER], descriptors[SPARE] = pooled.link.descriptors()
                if self._retention is not None:
                    descriptors[TOKEN] = self._retention.token.fileno()
        except NanoGridError as error:
            self._line.send({"error": error_to_json(error)})
            self.end()
            return
        self._line.send({"container": leased.to_json(), "with": list(descriptors)}, list(descriptors.values()))
        if pooled.link is not None:  # the connection must end with the run, and after the run there is another one
            pooled.link.release_spare()

    def end_run(self, action: str) -> None:
        """Do what the child's `end` message asks for: keep, destroy or done."""
        if self._pooled is None:
            return
        match action:
            case "keep":
                self._keep(self._pooled)
            case "destroy":
                self._line.send(self._destroy(self._pooled))
            case _:
                self.end()

    def end(self) -> None:
        """End the current lease if there is one. A container at rest goes back to the pool, any other one is removed."""
        pooled, self._pooled = self._pooled, None
        if pooled is None:
            return
        if self._stock.end_lease(pooled, self._retention):
            remove(pooled, self._engine, self._stock)

    def _map_page(self, descriptor: int) -> None:
        """Map the child's shared page, if children may retain containers at all."""
        try:
            if self._reuses and self._starter.settings.pause_after_s > 0:
                self._page = SharedPage(descriptor)
        finally:
            os.close(descriptor)

    def _lease(self, request: dict[str, Any]) -> tuple[Pooled, LeasedContainer]:
        """A container, and what the child must know about it."""
        limits = Confinement(**request["limits"])
        image = request["image"]
        kind = ContainerKind(self._images.id_of(image), limits.network, request["compiles"])
        demand = Demand(kind, request["key"], request["function_id"], limits.memory_mb)
        for _ in range(CHOICES):
            grant = self._stock.acquire(
                demand,
                image=image,
                limits=limits,
                request_id=request["request_id"],
                wait_s=request["wait_s"],
                still_wanted=self._line.is_open,
                retention=self._retention,
            )
            self._pooled = grant.pooled
            if grant.start is StartKind.COLD:
                self._start(grant.pooled, request["interpreter"])
                self._stock.move(grant.pooled, State.LEASED)
                return grant.pooled, self._leased(grant.pooled, StartKind.COLD)
            if (leased := self._wake(grant, limits)) is not None:
                return grant.pooled, leased
            self._stock.counters.add(PoolCounter.EVICTIONS, Eviction.GONE.value)
            self.end()  # the container is gone: try another one
        raise ContainerLostError(f"{CHOICES} warm containers in a row were gone: is another program removing them?")

    def _start(self, pooled: Pooled, interpreter: str) -> None:
        try:
            self._starter.start(pooled, interpreter)
        except BaseException:
            self._stock.counters.add(PoolCounter.START_FAILURES)
            raise

    def _wake(self, grant: Grant, limits: Confinement) -> LeasedContainer | None:
        """Make a warm or prewarmed container ready for its run. None if the container is gone."""
        pooled = grant.pooled
        if not is_alive(pooled, self._engine):
            log.warning("container %s is gone: it ended while it was not in use", pooled.name)
            return None
        try:
            if (pooled.limits.memory_mb, pooled.limits.cpus) != (limits.memory_mb, limits.cpus):
                self._engine.limit(str(pooled.id), limits.memory_mb * MIB, limits.cpus)
                pooled.limits = limits
            if not pooled.thaws_by_cgroup and (pooled.paused or pooled.cgroup.is_frozen()):
                self._engine.unpause(str(pooled.id))
                pooled.paused_by_engine = False
        except NanoGridError as error:
            log.warning("container %s is not used again: %s", pooled.name, error)
            return None
        pooled.paused = False
        return self._leased(pooled, grant.start)

    def _leased(self, pooled: Pooled, start: StartKind) -> LeasedContainer:
        assert pooled.slot is not None
        has_runner = pooled.link is not None
        self._stock.counters.add(PoolCounter.STARTS, start.value)
        return LeasedContainer(str(pooled.id), pooled.name, start, pooled.cgroup, pooled.slot.path, has_runner)

    def _keep(self, pooled: Pooled) -> None:
        """Have the container cleaned after its run. From now on the next request of its function finds it."""
        if not self._reuses:
            self.end()  # no request may get it, not even one that waits for it
            return
        self._pooled = None
        if self._stock.end_lease(pooled, self._retention):
            pooled.runs += self._retention is None  # otherwise the shared page counts them
            pooled.measure()
            self._stock.move(pooled, State.CLEANING)
            self._cleaner.watch(pooled)

    def _destroy(self, pooled: Pooled) -> dict[str, Any]:
        """Kill and remove the container. Its folder stays until the child has read the result."""
        try:
            if pooled.cgroup.memory is None:
                # Without a cgroup only the engine reports OOM kills, and only after all processes have ended.
                self._engine.kill(str(pooled.id))
            end = self._engine.end_of(str(pooled.id))
            self._engine.remove(str(pooled.id))
        except NanoGridError as error:
            return {"error": error_to_json(error)}
        return {"ended": asdict(end)}


def is_alive(pooled: Pooled, engine: Engine) -> bool:
    """Whether a container that is not in use can still run something. A launcher has no connection: the engine is asked."""
    if pooled.link is not None:
        return pooled.link.is_alive()
    try:
        return engine.is_running(str(pooled.id))
    except NanoGridError:
        return False
