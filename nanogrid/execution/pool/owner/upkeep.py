"""Pauses idle containers, evicts expired and dead ones, and prewarms missing ones.

Runs in: two threads of the worker's main process.

The rule: it works on one container at a time, so that the engine and the cores are free for requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from nanogrid.errors import NanoGridError
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.pool.owner import policy
from nanogrid.execution.pool.owner.images import Images
from nanogrid.execution.pool.owner.policy import Bounds, ContainerFacts, ContainerKind
from nanogrid.execution.pool.owner.pool_counters import Eviction, PoolCounter
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.remover import remove
from nanogrid.execution.pool.owner.starter import Starter
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.protocol import PYTHON, is_python
from nanogrid.execution.pool.states import State
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
REFILL_RETRY_S = 5.0


class Upkeep:
    """Two threads: one pauses and evicts containers, one prewarms them."""

    def __init__(self, settings: Settings, engine: Engine, stock: Stock, starter: Starter, images: Images) -> None:
        self._settings = settings
        self._engine = engine
        self._stock = stock
        self._starter = starter
        self._images = images
        self._bounds: Bounds = stock.bounds
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._runtimes: tuple[str, ...] = ()

    def start(self) -> None:
        """Start both threads."""
        for target in (self._maintain, self._refill):
            thread = threading.Thread(target=target, name=f"upkeep{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop both threads."""
        self._stopping.set()
        self._stock.may_refill.set()
        for thread in self._threads:
            thread.join()

    def prewarm(self, runtimes: Iterable[str]) -> None:
        """Keep prewarmed containers for these runtimes."""
        self._runtimes = tuple(runtimes)
        self._stock.may_refill.set()

    # -- containers that are not in use

    def _maintain(self) -> None:
        images_at = time.monotonic() + self._settings.image_check_s
        while not self._stopping.is_set():
            try:
                retained_s = self._take_back_retained()
                self._evict_expired_and_dead()
                wait_s = min(retained_s, self._pause_idle())
                if time.monotonic() >= images_at:
                    images_at = time.monotonic() + self._settings.image_check_s
                    self._drop_outdated()
            except NanoGridError as error:
                log.warning("the upkeep of the pool failed: %s", error)
                wait_s = CHECK_EVERY_S
            except Exception:  # one container must not end the upkeep of all others
                log.exception("the upkeep of the pool failed")
                wait_s = CHECK_EVERY_S
            self._stopping.wait(wait_s)

    def _take_back_retained(self) -> float:
        """Take back containers that have been at rest for long enough, or have ended; seconds until the next one is due."""
        wait_s = CHECK_EVERY_S
        back: list[Pooled] = []
        for pooled in self._stock.all():
            if (since := pooled.resting_since()) is None:
                continue
            due_s = since + min(self._settings.pause_after_s, self._settings.idle_timeout_s) - time.monotonic()
            if due_s <= 0 or (pooled.link is not None and pooled.link.is_cut()):
                back.append(pooled)
            else:
                wait_s = min(wait_s, due_s)
        self._stock.take_back(back)
        return wait_s

    def _evict_expired_and_dead(self) -> None:
        """Evict containers that have been idle for too long, and those that have ended."""
        over = set(policy.expired(self._facts(), time.monotonic(), self._settings.idle_timeout_s))
        gone = set()
        for pooled in self._stock.all():
            unused = pooled.state in policy.EVICTABLE
            if unused and pooled.number not in over and pooled.link is not None and not pooled.link.is_alive():
                log.warning("container %s is gone: it ended while it was not in use", pooled.name)
                gone.add(pooled.number)
        self._stock.evict(over, Eviction.IDLE)
        self._stock.evict(gone, Eviction.GONE)

    def _pause_idle(self) -> float:
        """Pause containers that have been idle for long enough; seconds until the next one is due."""
        wait_s = CHECK_EVERY_S
        for pooled in self._stock.all():
            # Only runners are paused: they may have a process that uses CPU. A launcher sleeps in a system call.
            if pooled.paused or pooled.link is None or pooled.state not in policy.EVICTABLE:
                continue
            due_s = pooled.since + self._settings.pause_after_s - time.monotonic()
            if due_s > 0:
                wait_s = min(wait_s, due_s)
            else:
                self._pause(pooled)
        return wait_s

    def _pause(self, pooled: Pooled) -> None:
        """The first pause goes through the engine, so that `docker ps` shows it; later ones through the cgroup, in microseconds."""
        before = pooled.state
        # A request may have got the container since the check.
        if before not in policy.EVICTABLE or not self._stock.move(pooled, State.PAUSING, expected=before):
            return
        try:
            self._rename(pooled)
            if not (pooled.paused_by_engine and pooled.cgroup.freeze()):
                self._engine.pause(str(pooled.id))
                pooled.paused_by_engine = True
                pooled.cgroup.freeze()  # the engine does nothing if it believes that the container is paused
        except NanoGridError as error:
            log.warning("container %s is not used again: %s", pooled.name, error)
            remove(pooled, self._engine, self._stock)
            return
        pooled.paused = True
        self._stock.move(pooled, before)

    def _rename(self, pooled: Pooled) -> None:
        """Rename a container that was prewarmed to the name of its function."""
        name = self._starter.name_of(pooled)
        if name != pooled.name:
            self._engine.rename(str(pooled.id), name)
            pooled.name = name

    def _drop_outdated(self) -> None:
        outdated = self._images.refresh()
        containers = [pooled for pooled in self._stock.all() if pooled.kind.image_id in outdated]
        self._stock.take_back(containers, after_run=True)
        self._stock.evict([pooled.number for pooled in containers], Eviction.OUTDATED)

    # -- prewarmed containers

    def _refill(self) -> None:
        while not self._stopping.is_set():
            self._stock.may_refill.wait()
            self._stock.may_refill.clear()
            try:
                while not self._stopping.is_set() and self._prewarm_one():
                    pass
            except NanoGridError as error:
                log.warning("no container could be prewarmed: %s; next try in %g s", error, REFILL_RETRY_S)
                self._stopping.wait(REFILL_RETRY_S)
                self._stock.may_refill.set()
            except Exception:
                log.exception("no container could be prewarmed")
                self._stopping.wait(REFILL_RETRY_S)

    def _prewarm_one(self) -> bool:
        """Prewarm one container. False if none is missing."""
        limits = Confinement(self._settings.memory_mb, self._settings.cpus, "none")
        targets = self._prewarm_targets()
        counts = [(kind, count) for kind, count, _, _ in targets]
        kind = policy.missing(self._facts(), counts, self._bounds, self._settings.memory_mb)
        if kind is None:
            return False
        image, interpreter = next((image, program) for one, _, image, program in targets if one == kind)
        pooled = self._stock.create(kind, image, limits)
        if pooled is None:
            return False
        try:
            self._starter.start(pooled, interpreter)
        except BaseException:
            remove(pooled, self._engine, self._stock)
            self._stock.counters.add(PoolCounter.START_FAILURES)
            raise
        self._stock.move(pooled, State.PREWARMED)
        self._stock.counters.add(PoolCounter.REFILLS)
        return True

    def _facts(self) -> list[ContainerFacts]:
        return [pooled.facts for pooled in self._stock.all()]

    def _prewarm_targets(self) -> list[tuple[ContainerKind, int, str, str]]:
        """Kind, count, image and interpreter of every runtime with prewarmed containers."""
        found = []
        for name in self._runtimes:
            runtime = self._settings.runtime_table[name]
            count = self._settings.prewarmed.get(name, 0 if self._settings.prewarmed else 1)
            image_id = self._images.id_of(runtime.image) if count else ""
            if count:
                program = runtime.command[0] if PYTHON.search(runtime.command[0]) else "python3"
                kind = ContainerKind(image_id, "none", not is_python(runtime.command))
                found.append((kind, count, runtime.image, program))
        return found
