"""The bootstep that detects a stalled worker and gets it going again.

The rule: a thread of its own detects a stall, because the event loop may be what hangs. Repairs run in the event loop, which
owns the pool. Nothing here answers a request: one that cannot be handed to a child returns to its queue.
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
from nanogrid.worker.stall import StallDetector, WorkerSnapshot
from nanogrid.worker.state import WorkerState

log = get_logger(__name__)

CHECK_S = 1.0
PATIENCE = 3
"""A worker that is still stalled after this many times `stalled_after_s` exits, so that its supervisor restarts it."""

EXIT_CODE = 70
"""EX_SOFTWARE."""


class StallStep(bootsteps.StartStopStep):
    """Checks once a second while the worker is ready, not while it starts or drains."""

    requires = (components.Pool,)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        settings: Settings = worker.app.settings
        self._worker = worker
        self._state: WorkerState = worker.nanogrid
        self._after_s = settings.stalled_after_s
        self._detector = StallDetector(self._after_s)
        self._stopped = threading.Event()
        self._timer: Any = None
        self._mended_at = self._lost_since = 0.0

    # -- start and stop

    def start(self, worker: Any) -> None:
        """Check from the moment the worker is ready until it drains."""
        signals.worker_ready.connect(self._begin, weak=False)
        signals.worker_shutting_down.connect(self._end, weak=False)

    def stop(self, worker: Any) -> None:
        """Stop checking."""
        self._end()
        signals.worker_ready.disconnect(self._begin)
        signals.worker_shutting_down.disconnect(self._end)

    terminate = stop

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called at each start of the consumer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = hub.call_repeatedly(CHECK_S, self._mend)

    def _begin(self, **_: Any) -> None:
        if self._state.stalls is None:
            self._state.stalls = self._detector
            threading.Thread(target=self._run, name="worker-stalls", daemon=True).start()

    def _end(self, **_: Any) -> None:
        self._state.stalls = None
        self._stopped.set()

    # -- detecting

    def _run(self) -> None:
        while not self._stopped.wait(CHECK_S):
            snapshot = self._snapshot()
            if snapshot is not None:
                self._detector.check(time.monotonic(), snapshot)
                self._exit_if_still_stalled()

    def _snapshot(self) -> WorkerSnapshot | None:
        """Return the state of the worker, or None if Celery changed it while this thread read it."""
        try:
            active = set(state.active_requests)
            waiting = sum(request not in active for request in state.reserved_requests)
        except RuntimeError:
            return None
        return WorkerSnapshot(waiting, self._worker.pool.num_processes - len(active), state.all_total_count[0])

    def _exit_if_still_stalled(self) -> None:
        """Exit the process if the repairs have not helped and no run would be lost.

        The requests it holds are redelivered after the visibility timeout. The host's next worker removes its containers.
        """
        now_s = time.monotonic()
        if self._detector.lasted_s(now_s) < PATIENCE * self._after_s or state.active_requests:
            return
        log.critical("the worker exits so that it can be restarted: %s", self._detector.problem(now_s))
        os._exit(EXIT_CODE)

    # -- repairing, in the event loop

    def _mend(self) -> None:
        if self._state.stalls is None:
            return
        now_s = time.monotonic()
        if self._lost_slots():
            self._lost_since = self._lost_since or now_s
        else:
            self._lost_since = 0.0
        if self._lost_since and now_s - self._lost_since >= self._after_s:
            self._counted(self._return_slots)
        elif self._detector.lasted_s(now_s) >= self._after_s and now_s - self._mended_at >= self._after_s:
            self._counted(self._replace_children)

    def _counted(self, mend: Callable[[], None]) -> None:
        self._state.mends += 1
        self._lost_since, self._mended_at = 0.0, time.monotonic()
        mend()

    def _lost_slots(self) -> int:
        """Return how many slots of the pool are taken without a job that holds them."""
        semaphore = self._worker.semaphore
        jobs = sum(not job.ready() for job in jobs_of(self._worker.pool))
        return max(0, int(semaphore.initial_value - semaphore.value - jobs))

    def _return_slots(self) -> None:
        semaphore, lost = self._worker.semaphore, self._lost_slots()
        log.error("%d of %d slots were held by no request and are released", lost, semaphore.initial_value)
        for _ in range(lost):
            semaphore.release()

    def _replace_children(self) -> None:
        """Kill the children that run nothing. The pool forks new ones, which get the requests that the old ones did not start."""
        pool = self._worker.pool
        busy = {pid for job in jobs_of(pool) for pid in job.worker_pids()}
        idle = [child.pid for child in children_of(pool) if child.pid not in busy]
        log.error("%s; replacing %d of them", self._detector.problem(time.monotonic()), len(idle))
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
