"""Celery's worker, except that a request that cannot be handed to a child does not keep that child's slot.

The rule: a slot that was acquired for a request is released by the child's answer, or here, and the request returns to its
queue.
"""

from __future__ import annotations

from typing import Any

from celery.apps import worker
from celery.utils.log import get_logger
from celery.worker import state

from nanogrid.monitoring.celery_private import WorkerHooks, is_written, jobs_of
from nanogrid.worker.state import WorkerState

log = get_logger(__name__)

# Celery's type stubs do not say what these hold.
_CeleryWorker: Any = worker.Worker


class Worker(WorkerHooks, _CeleryWorker):
    """What `celery -A nanogrid worker` runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.nanogrid = WorkerState()
        super().__init__(*args, **kwargs)

    def hand_over(self, request: Any) -> None:
        """Hand a request that has a slot to a child. Celery handles only one error here, that of a revoked task."""
        try:
            super().hand_over(request)
        except Exception:
            # If the request waited for its slot, this call happens while another request's end is handled. That must go on.
            log.exception("request %s could not be handed to a child and returns to its queue", request.id)
            self._take_back(request)

    def _take_back(self, request: Any) -> None:
        try:
            _forget_job(self.pool, request.id)
            state.task_ready(request)
            request.reject(requeue=True)
        except Exception:
            log.exception("request %s is redelivered only after its visibility timeout", request.id)
        finally:
            # Not within this call: the release hands over the next waiting request, which may fail as well, and so on.
            self.hub.call_soon(self.semaphore.release)


def _forget_job(pool: Any, request_id: str) -> None:
    """Remove what the pool noted for a request before the failure: a stopping worker would wait for its result."""
    for job in jobs_of(pool):
        if job.correlation_id == request_id and not is_written(job):
            job.discard()
