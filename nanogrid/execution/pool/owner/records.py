"""Every container of this worker by number. Applies each change of a container's state, on the stock's behalf.

Runs in: threads of the worker's main process, under the stock's lock.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.pool.owner.policy import ContainerFacts, ContainerKind
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.states import State


class Records:
    """All mutable state: `_by_number`. Not thread-safe: the stock guards it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._by_number: dict[int, Pooled] = {}
        self.may_refill = threading.Event()
        """Set when there may be room for a prewarmed container, or one fewer of them."""

    def __iter__(self) -> Iterator[Pooled]:
        return iter(self._by_number.values())

    def __getitem__(self, number: int) -> Pooled:
        return self._by_number[number]

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def facts(self) -> list[ContainerFacts]:
        """What the policy sees."""
        return [pooled.facts for pooled in self]

    def new(self, kind: ContainerKind, image: str, limits: Confinement) -> Pooled:
        """A record of a container that is about to be started."""
        pooled = Pooled(next(self._numbers), kind, image, limits, time.monotonic(), promised_mb=limits.memory_mb)
        self._by_number[pooled.number] = pooled
        return pooled

    def move(self, pooled: Pooled, state: State) -> None:
        """Change a container's state. Raises IllegalMoveError, and changes nothing then."""
        before = pooled.state
        pooled.enter(state)
        if before is State.PREWARMED or state in (State.ENDING, State.IDLE):
            self.may_refill.set()

    def remove(self, pooled: Pooled) -> None:
        """Forget a container, whatever its state."""
        if pooled.state is not State.ENDING:
            self.move(pooled, State.ENDING)
        self._by_number.pop(pooled.number, None)
