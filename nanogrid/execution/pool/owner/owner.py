"""The owner of all containers of one worker.

Runs in: threads of the worker's main process.

A child requests containers over a unix socket, and *the connection is the lease*: when the child ends, for whatever reason
(hard time limit, revoke, OOM killer), its connection closes. The owner destroys a container that runs something, and takes back one that the child retained.
If the whole worker crashes, the next owner finds leftover containers by their labels, at its start and periodically.

    stock                 every container and every request that waits; decides by `policy`, moves by `states`
    starter               starts one container
    child_session         one child's connection
    retained_containers   containers that children retain between two runs
    cleaner               waits for containers that are being cleaned after a run
    upkeep                pauses, evicts what is idle for too long, prewarms
    reaper, remover       remove what dead owners have left; remove one container
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from nanogrid.errors import NanoGridError
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.slot import Slot
from nanogrid.execution.pool import identity
from nanogrid.execution.pool.owner.child_session import ChildSession
from nanogrid.execution.pool.owner.cleaner import Cleaner
from nanogrid.execution.pool.owner.images import Images
from nanogrid.execution.pool.owner.policy import Bounds
from nanogrid.execution.pool.owner.pool_counters import Leak, PoolCounter
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.reaper import reap
from nanogrid.execution.pool.owner.remover import remove
from nanogrid.execution.pool.owner.starter import Starter
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.owner.upkeep import Upkeep
from nanogrid.execution.pool.owner.view import describe
from nanogrid.execution.pool.protocol import Line, short_path
from nanogrid.settings import Settings

log = logging.getLogger(__name__)


class Owner:
    """Leases containers to the children of one worker.

    All mutable state: `stock`, and `_lines` (open connections), guarded by `_lock`. The engine is called outside of both locks.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self._settings = settings
        self._engine = engine or Engine(settings)
        self._me = identity.OwnerIdentity(settings.data_dir)
        self.stock = Stock(bounds(settings), self._remove_later, lambda pooled: self._cleaner.watch(pooled))
        self._images = Images(self._engine)
        self._starter = Starter(settings, self._engine, self._me, self._images)
        self._cleaner = Cleaner(self.stock, self._remove_later)
        self._upkeep = Upkeep(settings, self._engine, self.stock, self._starter, self._images)
        self._lock = threading.Lock()
        self._lines: dict[Line, threading.Thread] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._doomed: queue.SimpleQueue[Pooled | None] = queue.SimpleQueue()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address = self._me.runs / "owner.sock"

    def __repr__(self) -> str:
        return f"<Owner {self._me.id} {self.stock!r}>"

    @property
    def id(self) -> str:
        """The id that labels this owner's containers."""
        return self._me.id

    @property
    def folder(self) -> Path:
        """The folder of this worker alone. It is removed when the worker stops."""
        return self._me.runs

    def start(self) -> None:
        """Listen for children, and start to remove what dead owners have left."""
        self._starter.prepare()
        with short_path(self.address) as address:
            self._listener.bind(address)
        self.address.chmod(0o600)
        self._listener.listen(128)
        for target in (self._accept, self._sweep, self._remove_doomed):
            thread = threading.Thread(target=target, name=f"owner-{target.__name__.strip('_')}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._cleaner.start()
        self._upkeep.start()

    def prewarm(self, runtimes: Iterable[str]) -> None:
        """Keep prewarmed containers for these runtimes from now on, as many as the settings say."""
        self._upkeep.prewarm(runtimes)

    def stop(self) -> None:
        """End all leases, destroy all containers, and release the lock."""
        self._stopping.set()
        self.stock.close()
        with suppress(OSError):  # it was never started
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._upkeep.stop()
        for line, _ in self._open_lines():
            line.hang_up()
        for _, thread in self._open_lines():
            thread.join()
        self._cleaner.stop()
        self.stock.evict([pooled.number for pooled in self.stock.all()])
        self._doomed.put(None)
        for thread in self._threads:
            thread.join()
        try:
            self._remove_strays()
        except NanoGridError as error:
            log.warning(
                "containers of this worker may be left: %s; the next worker of this data folder removes them", error
            )
        Slot(self._me.runs).remove()
        self._me.close()
        self._engine.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self._listener.close()
        self._me.detach()
        self._cleaner.leave_to_parent()
        for pooled in self.stock.all_without_lock():
            pooled.retention = None
            if pooled.link is not None:
                pooled.link.close()
        for line in list(self._lines):
            line.close()

    def _open_lines(self) -> list[tuple[Line, threading.Thread]]:
        with self._lock:
            return list(self._lines.items())

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # stopped
            line = Line(connection)
            thread = threading.Thread(target=self._serve, args=(line,), name="lease", daemon=True)
            with self._lock:  # so that `stop` finds only threads that are started
                if self._stopping.is_set():
                    line.close()
                    return
                self._lines[line] = thread
                thread.start()

    def _serve(self, line: Line) -> None:
        session = ChildSession(line, self.stock, self._starter, self._images, self._cleaner, self._engine)
        try:
            while (message := line.receive()) is not None:
                if "lease" in message:
                    session.begin(message["lease"], message.get("with", ()))
                elif "end" in message:
                    session.end_run(message["end"])
                elif "show" in message:
                    line.send({"pool": [describe(view) for view in self.stock.views()], "pid": os.getpid()})
        except OSError:
            log.debug("a child hung up")
        except Exception:  # no lease may end the owner
            log.exception("a lease failed")
        finally:
            session.end()
            line.close()
            with self._lock:
                del self._lines[line]

    def _remove_later(self, doomed: Sequence[Pooled]) -> None:
        for pooled in doomed:
            self._doomed.put(pooled)

    def _remove_doomed(self) -> None:
        """Remove evicted containers. The sweep retries what fails."""
        while (pooled := self._doomed.get()) is not None:
            remove(pooled, self._engine, self.stock)

    def _sweep(self) -> None:
        while True:
            try:
                reaped = reap(self._settings.data_dir, self._engine, keep=self._me.id)
                self.stock.counters.add(PoolCounter.LEAKS, Leak.DEAD_WORKER.value, reaped)
                self._remove_strays()
            except NanoGridError as error:
                log.warning("leaked containers could not be searched for: %s", error)
            if self._stopping.wait(self._settings.reap_interval_s):
                return

    def _remove_strays(self) -> None:
        """Remove containers of this owner that the stock does not know: the engine failed to remove them earlier."""
        found = self._engine.find(self._me.labels)
        # Read after the engine's answer: a container that is created meanwhile is known by then.
        known = {str(pooled.number) for pooled in self.stock.all()}
        for container in found:
            if container.labels.get(identity.NUMBER_LABEL) not in known:
                log.warning("container %s is leaked; removing it", container.name)
                self._engine.remove(container.id)
                self.stock.counters.add(PoolCounter.LEAKS, Leak.OWN.value)


def bounds(settings: Settings) -> Bounds:
    """The pool's bounds. By default containers may use half of the host's memory."""
    memory_mb = settings.pool_memory_mb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21
    return Bounds(settings.pool_containers, memory_mb, settings.function_containers)
