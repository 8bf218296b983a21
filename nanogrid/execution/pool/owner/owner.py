"""The owner of all containers of one worker: threads in the worker's main process.

A child asks for containers over a unix socket, and *the connection is the lease*: when the child ends, for whatever
reason (hard time limit, revoke, OOM killer), its connection closes and the container is destroyed. There is no heartbeat
and no timer to forget. What a crash of the whole worker leaves behind is found by label, here, at the next start and
periodically.

    stock      every container and who waits; decides by `policy`, moves by `states`
    starting   makes one container ready
    leasing    one child's connection
    hand       what a child and its owner share of a container that the child keeps between two runs
    settling   containers that are being cleaned after a run
    tending    pauses, ends what is idle for too long, makes prewarmed ones
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
from nanogrid.execution.pool.owner.child_session import Leases
from nanogrid.execution.pool.owner.cleaner import Settler
from nanogrid.execution.pool.owner.images import Images
from nanogrid.execution.pool.owner.policy import Bounds
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.reaper import reap
from nanogrid.execution.pool.owner.remover import remove
from nanogrid.execution.pool.owner.starter import Starter
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.owner.tally import Counted, Leak
from nanogrid.execution.pool.owner.upkeep import Tender
from nanogrid.execution.pool.owner.view import describe
from nanogrid.execution.pool.protocol import Line, short_path
from nanogrid.settings import Settings

log = logging.getLogger(__name__)


class Owner:
    """Leases containers to the children of one worker.

    All mutable state: `stock`, and `_lines` (open connections), guarded by `_lock`; docker calls are made outside of both.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self._settings = settings
        self._engine = engine or Engine(settings)
        self._me = identity.Owner(settings.data_dir)
        self.stock = Stock(bounds(settings), self._remove_later, lambda pooled: self._settler.watch(pooled))
        self._images = Images(self._engine)
        self._starter = Starter(settings, self._engine, self._me, self._images)
        self._settler = Settler(self.stock, self._remove_later)
        self._tender = Tender(settings, self._engine, self.stock, self._starter, self._images)
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
        """The id that this owner's containers carry as a label."""
        return self._me.id

    @property
    def folder(self) -> Path:
        """The folder of this worker alone, gone when it ends."""
        return self._me.runs

    def start(self) -> None:
        """Listen for children, and begin to look for what dead owners left."""
        self._starter.prepare()
        with short_path(self.address) as address:
            self._listener.bind(address)
        self.address.chmod(0o600)
        self._listener.listen(128)
        for target in (self._accept, self._sweep, self._remove_doomed):
            thread = threading.Thread(target=target, name=f"owner-{target.__name__.strip('_')}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._settler.start()
        self._tender.start()

    def prewarm(self, runtimes: Iterable[str]) -> None:
        """Keep prewarmed containers for these runtimes from now on, as many as the settings say."""
        self._tender.prewarm(runtimes)

    def stop(self) -> None:
        """End all leases, destroy their containers, and give the lock up."""
        self._stopping.set()
        self.stock.close()
        with suppress(OSError):  # never started
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._tender.stop()
        for line, _ in self._open_lines():
            line.hang_up()
        for _, thread in self._open_lines():
            thread.join()
        self._settler.stop()
        self.stock.retire([pooled.number for pooled in self.stock.all()])
        self._doomed.put(None)
        for thread in self._threads:
            thread.join()
        try:
            self._remove_strays()
        except NanoGridError as error:
            log.warning("containers of this worker may be left: %s; the next worker here removes them", error)
        Slot(self._me.runs).remove()
        self._me.close()
        self._engine.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self._listener.close()
        self._me.detach()
        self._settler.leave_to_parent()
        for pooled in self.stock.all_without_lock():
            pooled.hand = None
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
            with self._lock:  # `stop` finds it started, or not at all
                if self._stopping.is_set():
                    line.close()
                    return
                self._lines[line] = thread
                thread.start()

    def _serve(self, line: Line) -> None:
        leases = Leases(line, self.stock, self._starter, self._images, self._settler, self._engine)
        try:
            while (message := line.receive()) is not None:
                if "lease" in message:
                    leases.begin(message["lease"], message.get("with", ()))
                elif "end" in message:
                    leases.hear(message["end"])
                elif "show" in message:
                    line.send({"pool": [describe(view) for view in self.stock.views()], "pid": os.getpid()})
        except OSError:
            log.debug("a child hung up")
        except Exception:  # a lease must never take the owner down with it
            log.exception("a lease failed")
        finally:
            leases.end()
            line.close()
            with self._lock:
                del self._lines[line]

    def _remove_later(self, doomed: Sequence[Pooled]) -> None:
        for pooled in doomed:
            self._doomed.put(pooled)

    def _remove_doomed(self) -> None:
        """Remove what was evicted. Failures are left to the sweep."""
        while (pooled := self._doomed.get()) is not None:
            remove(pooled, self._engine, self.stock)

    def _sweep(self) -> None:
        while True:
            try:
                reaped = reap(self._settings.data_dir, self._engine, keep=self._me.id)
                self.stock.tally.add(Counted.LEAKS, Leak.DEAD_WORKER.value, reaped)
                self._remove_strays()
            except NanoGridError as error:
                log.warning("orphans could not be looked for: %s", error)
            if self._stopping.wait(self._settings.reap_interval_s):
                return

    def _remove_strays(self) -> None:
        """Remove containers of this owner that the stock does not know: the engine failed when they were to go."""
        found = self._engine.find(self._me.labels)
        # Looked at after the engine was asked: one that is made meanwhile is known by then.
        known = {str(pooled.number) for pooled in self.stock.all()}
        for container in found:
            if container.labels.get(identity.NUMBER_LABEL) not in known:
                log.warning("container %s: nobody holds it; removing it", container.name)
                self._engine.remove(container.id)
                self.stock.tally.add(Counted.LEAKS, Leak.OWN.value)


def bounds(settings: Settings) -> Bounds:
    """The pool's bounds. Without a setting, containers may use half of the host's memory."""
    memory_mb = settings.pool_memory_mb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21
    return Bounds(settings.pool_containers, memory_mb, settings.function_containers)
