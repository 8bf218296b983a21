"""One child's leases, one after the other, seen from the owner: give a container out, take it back or destroy it.

The rule: a lease that ends in any other way than by the child's own word destroys its container, unless that rests in the
child's hand: then nothing of the child's is in it.
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
from nanogrid.execution.pool.owner.cleaner import Settler
from nanogrid.execution.pool.owner.images import Images
from nanogrid.execution.pool.owner.policy import Kind, Wish
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.remover import remove
from nanogrid.execution.pool.owner.starter import Starter
from nanogrid.execution.pool.owner.stock import Grant, Stock
from nanogrid.execution.pool.owner.tally import Counted, Eviction
from nanogrid.execution.pool.protocol import RUNNER, SLATE, SPARE, TOKEN, LeasedContainer, Line, error_to_json
from nanogrid.execution.pool.retained import Hand, Slate, Token
from nanogrid.execution.pool.states import State
from nanogrid.result import StartKind

log = logging.getLogger(__name__)

CHOICES = 16
"""How many containers that turned out to be gone a lease looks at before it gives up."""


class Leases:
    """The leases of one connection: at most one at a time. Used by one thread."""

    def __init__(
        self, line: Line, stock: Stock, starter: Starter, images: Images, settler: Settler, engine: Engine
    ) -> None:
        self._line = line
        self._stock = stock
        self._starter = starter
        self._images = images
        self._settler = settler
        self._engine = engine
        self._pooled: Pooled | None = None
        self._hand: Hand | None = None
        self._slate: Slate | None = None
        self._reuses = starter.settings.idle_timeout_s > 0

    def begin(self, request: dict[str, Any], sent: Sequence[str] = ()) -> None:
        """Give the child a container, or tell it why there is none. The one that it has in hand is not its own any more.

        `sent` names the descriptors that came with the request.
        """
        self.end()
        if SLATE in sent:
            self._see(self._line.take_descriptor())
        self._hand = Hand(Token(), self._slate) if self._slate is not None else None
        try:
            pooled, leased = self._lease(request)
            descriptors = {}
            if pooled.link is not None:
                descriptors[RUNNER], descriptors[SPARE] = pooled.link.descriptors()
                if self._hand is not None:
                    descriptors[TOKEN] = self._hand.token.fileno()
        except NanoGridError as error:
            self._line.send({"error": error_to_json(error)})
            self.end()
            return
        self._line.send({"container": leased.to_json(), "with": list(descriptors)}, list(descriptors.values()))

    def hear(self, word: str) -> None:
        """What the child says of its container: keep, destroy or done."""
        if self._pooled is None:
            return
        match word:
            case "keep":
                self._keep(self._pooled)
            case "destroy":
                self._line.send(self._destroy(self._pooled))
            case _:
                self.end()

    def end(self) -> None:
        """Have back what rests in the child's hand, and remove what was not given back in any way."""
        pooled, self._pooled = self._pooled, None
        if pooled is None:
            return
        self._stock.take_back([pooled] if pooled.hand is self._hand else [])
        if self._stock.claim(pooled, self._hand):
            remove(pooled, self._engine, self._stock)

    def _see(self, descriptor: int) -> None:
        """What the child has sent to write on, where a container may stay in its hand at all."""
        try:
            if self._reuses and self._starter.settings.pause_after_s > 0:
                self._slate = Slate(descriptor)
        finally:
            os.close(descriptor)

    def _lease(self, request: dict[str, Any]) -> tuple[Pooled, LeasedContainer]:
        """A container, and what the child needs to know of it."""
        limits = Confinement(**request["limits"])
        image = request["image"]
        kind = Kind(self._images.id_of(image), limits.network, request["compiles"])
        wish = Wish(kind, request["key"], request["function_id"], limits.memory_mb)
        for _ in range(CHOICES):
            grant = self._stock.acquire(
                wish,
                image=image,
                limits=limits,
                request_id=request["request_id"],
                wait_s=request["wait_s"],
                still_wanted=self._line.is_open,
                hand=self._hand,
            )
            self._pooled = grant.pooled
            if grant.start is StartKind.COLD:
                self._start(grant.pooled, request["interpreter"])
                self._stock.move(grant.pooled, State.LEASED)
                return grant.pooled, self._leased(grant.pooled, StartKind.COLD)
            if (leased := self._wake(grant, limits)) is not None:
                return grant.pooled, leased
            self._stock.tally.add(Counted.EVICTIONS, Eviction.GONE.value)
            self.end()  # it is gone: look again
        raise ContainerLostError(f"{CHOICES} warm containers in a row were gone: is somebody removing them?")

    def _start(self, pooled: Pooled, interpreter: str) -> None:
        try:
            self._starter.start(pooled, interpreter)
        except BaseException:
            self._stock.tally.add(Counted.START_FAILURES)
            raise

    def _wake(self, grant: Grant, limits: Confinement) -> LeasedContainer | None:
        """Make a container that waited ready for its run. None where it is gone."""
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
        self._stock.tally.add(Counted.STARTS, start.value)
        return LeasedContainer(str(pooled.id), pooled.name, start, pooled.cgroup, pooled.slot.path, has_runner)

    def _keep(self, pooled: Pooled) -> None:
        """The run is over: have the container cleaned and put back. From here on the function's next request finds it."""
        if not self._reuses:
            self.end()  # nobody may get it, not even who waits for it
            return
        self._pooled = None
        if self._stock.claim(pooled, self._hand):
            pooled.runs += self._hand is None  # else they were counted on the slate
            pooled.measure()
            self._stock.move(pooled, State.CLEANING)
            self._settler.watch(pooled)

    def _destroy(self, pooled: Pooled) -> dict[str, Any]:
        """Kill and remove the container; its folder stays until the child has read what is in it."""
        try:
            if pooled.cgroup.memory is None:
                # Without accounts the engine's word on memory counts, and it gives that only when all has ended.
                self._engine.kill(str(pooled.id))
            end = self._engine.end_of(str(pooled.id))
            self._engine.remove(str(pooled.id))
        except NanoGridError as error:
            return {"error": error_to_json(error)}
        return {"ended": asdict(end)}


def is_alive(pooled: Pooled, engine: Engine) -> bool:
    """Whether a container that waits can still run something. A runner's connection tells; for a launcher the engine is asked."""
    if pooled.link is not None:
        return pooled.link.is_alive()
    try:
        return engine.is_running(str(pooled.id))
    except NanoGridError:
        return False
