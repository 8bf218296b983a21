"""What has to be done to the pool while nobody asks for anything: pause, end, replace, make ready.

The rule: one container at a time, so that runs that are under way keep the engine and the cores to themselves.
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
from nanogrid.execution.pool.owner.policy import Bounds, Kind
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.remover import remove
from nanogrid.execution.pool.owner.starter import Starter
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.owner.tally import Counted, Eviction
from nanogrid.execution.pool.protocol import PYTHON, is_python
from nanogrid.execution.pool.states import State
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
REFILL_AGAIN_S = 5.0


class Tender:
    """Two threads: one looks after what is there, one makes what is missing."""

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
        """Begin."""
        for target in (self._look_after, self._refill):
            thread = threading.Thread(target=target, name=f"tender{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End both threads."""
        self._stopping.set()
        self._stock.wanting.set()
        for thread in self._threads:
            thread.join()

    def prewarm(self, runtimes: Iterable[str]) -> None:
        """Keep prewarmed containers for these runtimes."""
        self._runtimes = tuple(runtimes)
        self._stock.wanting.set()

    # -- what is there

    def _look_after(self) -> None:
        images_at = time.monotonic() + self._settings.image_check_s
        while not self._stopping.is_set():
            try:
                in_hand_s = self._take_back_what_rests()
                self._end_what_is_over()
                wait_s = min(in_hand_s, self._pause_what_is_idle())
                if time.monotonic() >= images_at:
                    images_at = time.monotonic() + self._settings.image_check_s
                    self._drop_outdated()
            except NanoGridError as error:
                log.warning("the pool could not be looked after: %s", error)
                wait_s = LOOK_EVERY_S
            except Exception:  # whatever is wrong with one container, the others are to be looked after
                log.exception("the pool could not be looked after")
                wait_s = LOOK_EVERY_S
            self._stopping.wait(wait_s)

    def _take_back_what_rests(self) -> float:
        """Take from their children's hands what rests there for long enough, or has died; seconds until the next one."""
        wait_s = LOOK_EVERY_S
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

    def _end_what_is_over(self) -> None:
        """End what waited for too long, and what has died."""
        over = set(policy.expired(self._stock.held(), time.monotonic(), self._settings.idle_timeout_s))
        gone = set()
        for pooled in self._stock.all():
            waits = pooled.state in policy.EVICTABLE
            if waits and pooled.number not in over and pooled.link is not None and not pooled.link.is_alive():
                log.warning("container %s is gone: it ended while it was not in use", pooled.name)
                gone.add(pooled.number)
        self._stock.retire(over, Eviction.IDLE)
        self._stock.retire(gone, Eviction.GONE)

    def _pause_what_is_idle(self) -> float:
        """Pause what is idle for long enough; seconds until the next one is."""
        wait_s = LOOK_EVERY_S
        for pooled in self._stock.all():
            # A launcher sleeps in a system call; a runner could have been left with something that does not.
            if pooled.paused or pooled.link is None or pooled.state not in policy.EVICTABLE:
                continue
            due_s = pooled.since + self._settings.pause_after_s - time.monotonic()
            if due_s > 0:
                wait_s = min(wait_s, due_s)
            else:
                self._pause(pooled)
        return wait_s

    def _pause(self, pooled: Pooled) -> None:
        """Once through the engine, so that `docker ps` says so; from then on by the cgroup, which takes microseconds."""
        before = pooled.state
        # A request may have been given it since it was looked at.
        if before not in policy.EVICTABLE or not self._stock.take(pooled, before, State.PAUSING):
            return
        try:
            self._rename(pooled)
            if not (pooled.paused_by_engine and pooled.cgroup.freeze()):
                self._engine.pause(str(pooled.id))
                pooled.paused_by_engine = True
                pooled.cgroup.freeze()  # the engine does nothing where it takes it for paused already, by somebody's hand
        except NanoGridError as error:
            log.warning("container %s is not used again: %s", pooled.name, error)
            remove(pooled, self._engine, self._stock)
            return
        pooled.paused = True
        self._stock.move(pooled, before)

    def _rename(self, pooled: Pooled) -> None:
        """Call a container that was prewarmed after the function that it has got since: names are for people."""
        name = self._starter.name_of(pooled)
        if name != pooled.name:
            self._engine.rename(str(pooled.id), name)
            pooled.name = name

    def _drop_outdated(self) -> None:
        outdated = self._images.refresh()
        self._stock.call_in(lambda pooled: pooled.kind.image_id in outdated)
        going = [pooled.number for pooled in self._stock.all() if pooled.kind.image_id in outdated]
        self._stock.retire(going, Eviction.OUTDATED)

    # -- what is missing

    def _refill(self) -> None:
        while not self._stopping.is_set():
            self._stock.wanting.wait()
            self._stock.wanting.clear()
            try:
                while not self._stopping.is_set() and self._make_one():
                    pass
            except NanoGridError as error:
                log.warning("no prewarmed container could be made: %s; again in %g s", error, REFILL_AGAIN_S)
                self._stopping.wait(REFILL_AGAIN_S)
                self._stock.wanting.set()
            except Exception:
                log.exception("no prewarmed container could be made")
                self._stopping.wait(REFILL_AGAIN_S)

    def _make_one(self) -> bool:
        """Make one container that is missing. False where none is."""
        limits = Confinement(self._settings.memory_mb, self._settings.cpus, "none")
        wanted = self._wanted()
        counts = [(kind, count) for kind, count, _, _ in wanted]
        kind = policy.missing(self._stock.held(), counts, self._bounds, self._settings.memory_mb)
        if kind is None:
            return False
        image, interpreter = next((image, program) for one, _, image, program in wanted if one == kind)
        pooled = self._stock.add(kind, image, limits)
        if pooled is None:
            return False
        try:
            self._starter.start(pooled, interpreter)
        except BaseException:
            remove(pooled, self._engine, self._stock)
            self._stock.tally.add(Counted.START_FAILURES)
            raise
        self._stock.move(pooled, State.PREWARMED)
        self._stock.tally.add(Counted.REFILLS)
        return True

    def _wanted(self) -> list[tuple[Kind, int, str, str]]:
        """Kind, count, image and interpreter of every runtime that is to be kept prewarmed."""
        found = []
        for name in self._runtimes:
            runtime = self._settings.runtime_table[name]
            count = self._settings.prewarmed.get(name, 0 if self._settings.prewarmed else 1)
            image_id = self._images.id_of(runtime.image) if count else ""
            if count:
                program = runtime.command[0] if PYTHON.search(runtime.command[0]) else "python3"
                kind = Kind(image_id, "none", not is_python(runtime.command))
                found.append((kind, count, runtime.image, program))
        return found
