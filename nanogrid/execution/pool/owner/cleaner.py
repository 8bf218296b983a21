"""Waits for containers to say that they are clean after a run, and puts them back.

The rule: one thread for all of them, so that no child and no lease waits for a container that it has given back.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Sequence

from nanogrid.errors import ContainerLostError
from nanogrid.execution.container.link import Ready, Unfit
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.states import State

log = logging.getLogger(__name__)

SETTLE_S = 30.0
"""How long a runner may take to clean up and be ready again. It takes milliseconds, or what the function's imports take."""

LOOK_EVERY_S = 1.0


class Settler:
    """All mutable state: `_watched` (containers and their deadlines by descriptor), guarded by `_lock`.

    `doomed` is called with the containers that cannot be used again.
    """

    def __init__(self, stock: Stock, doomed: Callable[[Sequence[Pooled]], None]) -> None:
        self._stock = stock
        self._doomed = doomed
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[Pooled, float]] = {}
        self._epoll = select.epoll()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and every container that it still waits for."""
        self._stopping.set()
        self._thread.join()
        for descriptor in list(self._watched):
            self._end(descriptor, "the worker is stopping")
        self._epoll.close()

    def watch(self, pooled: Pooled) -> None:
        """Put this container, which is being cleaned, back when it is ready: now where it has said so, else later. Returns at once."""
        if self._is_done(pooled):
            return
        assert pooled.link is not None
        with self._lock:
            self._watched[pooled.link.fileno()] = pooled, time.monotonic() + SETTLE_S
            self._epoll.register(pooled.link.fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self._epoll.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for descriptor, _ in self._epoll.poll(LOOK_EVERY_S):
                    self._hear(descriptor)
                now = time.monotonic()
                for descriptor, (_, deadline) in list(self._watched.items()):
                    if now > deadline:
                        self._end(descriptor, f"it was not clean within {SETTLE_S:g} s")
            except Exception:  # one container must never keep all others from coming back
                log.exception("a container could not be put back")

    def _hear(self, descriptor: int) -> None:
        """It has a word to say, and with that it is done."""
        pooled = self._forget(descriptor)
        if not self._is_done(pooled):
            self.watch(pooled)

    def _is_done(self, pooled: Pooled) -> bool:
        """Take its word where it has one: put it back, or have it removed. False where it has not said anything yet."""
        assert pooled.link is not None
        try:
            message = pooled.link.receive(0)
        except ContainerLostError as error:
            self._give_up(pooled, str(error))
            return True
        if message is None:
            return False
        changed = None if pooled.slot is None else pooled.slot.problem()
        if changed is not None:
            self._give_up(pooled, changed)
        elif isinstance(message, Ready):
            pooled.measure()
            pooled.request_id = None
            self._stock.move(pooled, State.IDLE)
        else:
            reason = f"{message.word}: {message.reason}" if isinstance(message, Unfit) else f"it said {message}"
            self._give_up(pooled, reason)
        return True

    def _end(self, descriptor: int, reason: str) -> None:
        self._give_up(self._forget(descriptor), reason)

    def _give_up(self, pooled: Pooled, reason: str) -> None:
        log.log(
            logging.DEBUG if self._stopping.is_set() else logging.WARNING,
            "container %s is not used again: %s", pooled.name, reason,
        )  # fmt: skip
        self._stock.move(pooled, State.ENDING)
        self._doomed([pooled])

    def _forget(self, descriptor: int) -> Pooled:
        with self._lock:
            pooled, _ = self._watched.pop(descriptor)
            self._epoll.unregister(descriptor)
        return pooled
