"""Waits until containers report that they are clean after a run, and puts them back into the pool.

Runs in: one thread of the worker's main process for all containers, so that neither a child nor its session waits for a container
that it has given back. `watch` is called from any thread.
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

CLEAN_S = 30.0
"""How long a runner may take to clean up and be ready again. It takes milliseconds, or as long as the function's imports."""

POLL_S = 1.0


class Cleaner:
    """All mutable state: `_watched` (containers and their deadlines by descriptor), guarded by `_lock`.

    `doomed` is called with containers that cannot be used again.
    """

    def __init__(self, stock: Stock, doomed: Callable[[Sequence[Pooled]], None]) -> None:
        self._stock = stock
        self._doomed = doomed
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[Pooled, float]] = {}
        self._epoll = select.epoll()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cleaner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and give up every container that is still being cleaned."""
        self._stopping.set()
        self._thread.join()
        for descriptor in list(self._watched):
            self._end(descriptor, "the worker is stopping")
        self._epoll.close()

    def watch(self, pooled: Pooled) -> None:
        """Put this CLEANING container back as soon as it reports that it is ready. Returns at once."""
        if self._finish(pooled):
            return
        assert pooled.link is not None
        with self._lock:
            self._watched[pooled.link.fileno()] = pooled, time.monotonic() + CLEAN_S
            self._epoll.register(pooled.link.fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self._epoll.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for descriptor, _ in self._epoll.poll(POLL_S):
                    self._receive(descriptor)
                now = time.monotonic()
                for descriptor, (_, deadline) in list(self._watched.items()):
                    if now > deadline:
                        self._end(descriptor, f"it was not clean within {CLEAN_S:g} s")
            except Exception:  # one container must not keep all others from the pool
                log.exception("a container could not be put back into the pool")

    def _receive(self, descriptor: int) -> None:
        """The container has sent something, or has ended."""
        pooled = self._forget(descriptor)
        if not self._finish(pooled):
            self.watch(pooled)

    def _finish(self, pooled: Pooled) -> bool:
        """Put the container back, or have it removed, if it has sent something. False if it has not."""
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
            reason = f"{message.word}: {message.reason}" if isinstance(message, Unfit) else f"its runner sent {message}"
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
