"""The bootstep that sees when the worker stands still, and gets it going again.

The rule: it is seen by a thread of its own, as the event loop may be what hangs; mended is it in the event loop, which the pool
belongs to. Nothing is answered here: a request that cannot be handed over goes back to its queue.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps, signals
from celery.utils.log import get_logger
from celery.worker import components, state

from nanogrid.monitoring.celery_private import children_of, jobs_of
from nanogrid.settings import Settings
from nanogrid.worker.stall import Look, Stall

log = get_logger(__name__)

LOOK_S = 1.0
PATIENCE = 3
"""A worker whose children still take nothing after so many times `stalled_after_s` ends, for its supervisor to start anew."""

EXIT_CODE = 70
"""EX_SOFTWARE."""


class Stalls(bootsteps.StartStopStep):
    """Looks once a second. A worker that starts or drains is let alone."""

    requires = (components.Pool,)
    current: Stalls | None = None
    """That of this process, while the worker takes requests."""
    mends = 0
    """How often the pool of this process was mended."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        settings: Settings = worker.app.settings
        self._worker = worker
        self._after_s = settings.stalled_after_s
        self._stall = Stall(self._after_s)
        self._stopped = threading.Event()
        self._entry: Any = None
        self._mended_at = self._lost_since = 0.0

    # -- the worker's life

    def start(self, worker: Any) -> None:
        """Look from the moment when the worker is ready until it drains."""
        signals.worker_ready.connect(self._begin, weak=False)
        signals.worker_shutting_down.connect(self._end, weak=False)

    def stop(self, worker: Any) -> None:
        """Look no more."""
        self._end()
        signals.worker_ready.disconnect(self._begin)
        signals.worker_shutting_down.disconnect(self._end)

    terminate = stop

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called at each start of the consumer."""
        if self._entry is not None:
            self._entry.cancel()
        self._entry = hub.call_repeatedly(LOOK_S, self._mend)

    def _begin(self, **_: Any) -> None:
        if Stalls.current is None:
            Stalls.current = self
            threading.Thread(target=self._run, name="worker-stalls", daemon=True).start()

    def _end(self, **_: Any) -> None:
        Stalls.current = None
        self._stopped.set()

    # -- seeing

    def problem(self) -> str | None:
        """Why the worker is not ready, or None."""
        return self._stall.problem(time.monotonic())

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_S):
            found = self._found()
            if found is not None:
                self._stall.look(time.monotonic(), found)
                self._give_up_if_in_vain()

    def _found(self) -> Look | None:
        """How the worker is; None where Celery changed it while this thread read it."""
        try:
            active = set(state.active_requests)
            waiting = sum(request not in active for request in state.reserved_requests)
        except RuntimeError:
            return None
        return Look(waiting, self._worker.pool.num_processes - len(active), state.all_total_count[0])

    def _give_up_if_in_vain(self) -> None:
        """End the process where mending has not helped and nothing runs that would be lost.

        What it holds comes again after the visibility timeout, and its containers are removed by the host's next worker.
        """
        if self._stall.lasted_s(time.monotonic()) < PATIENCE * self._after_s or state.active_requests:
            return
        log.critical("the worker ends itself, to be started anew: %s", self.problem())
        os._exit(EXIT_CODE)

    # -- mending, in the event loop

    def _mend(self) -> None:
        if Stalls.current is None:
            return
        now_s = time.monotonic()
        if self._lost_slots():
            self._lost_since = self._lost_since or now_s
        else:
            self._lost_since = 0.0
        if self._lost_since and now_s - self._lost_since >= self._after_s:
            self._told(self._return_slots)
        elif self._stall.lasted_s(now_s) >= self._after_s and now_s - self._mended_at >= self._after_s:
            self._told(self._replace_children)

    def _told(self, mend: Callable[[], None]) -> None:
        Stalls.mends += 1
        self._lost_since, self._mended_at = 0.0, time.monotonic()
        mend()

    def _lost_slots(self) -> int:
        """Slots of the pool that are taken, and that no job stands for."""
        semaphore = self._worker.semaphore
        jobs = sum(not job.ready() for job in jobs_of(self._worker.pool))
        return max(0, int(semaphore.initial_value - semaphore.value - jobs))

    def _return_slots(self) -> None:
        semaphore, lost = self._worker.semaphore, self._lost_slots()
        log.error("%d of %d slots were held by nobody and are returned", lost, semaphore.initial_value)
        for _ in range(lost):
            semaphore.release()

    def _replace_children(self) -> None:
        """Kill the children that have nothing in hand: the pool makes new ones, and what they did not take goes to those."""
        pool = self._worker.pool
        busy = {pid for job in jobs_of(pool) for pid in job.worker_pids()}
        idle = [child.pid for child in children_of(pool) if child.pid not in busy]
        log.error("%s: %d are replaced", self.problem(), len(idle))
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
