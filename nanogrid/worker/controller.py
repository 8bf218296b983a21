"""Celery's worker, in which no request takes a child's place with it when it cannot be handed over.

The rule: a slot that was taken for a request is returned by the child's answer, or here; and the request goes back to its queue.
"""

from __future__ import annotations

from typing import Any

from celery.apps import worker
from celery.utils.log import get_logger
from celery.worker import state

from nanogrid.monitoring.celery_private import WorkerHooks, is_written, jobs_of

log = get_logger(__name__)

# Celery's type stubs do not say what these hold.
_CeleryWorker: Any = worker.Worker


class Worker(WorkerHooks, _CeleryWorker):
    """What `celery -A nanogrid worker` runs."""

    def hand_over(self, request: Any) -> None:
        """Hand a request that has a slot to a child. Celery knows one error here, that of a revoked task."""
        try:
            super().hand_over(request)
        except Exception:
            # Not only this request depends on it: where it waited for its slot, this is called while the end of another is told.
            log.exception("request %s could not be handed to a child and is given back", request.id)
            self._take_back(request)

    def _take_back(self, request: Any) -> None:
        try:
            _forget_job(self.pool, request.id)
            state.task_ready(request)
            request.reject(requeue=True)
        except Exception:
            log.exception("request %s comes again only after its visibility timeout", request.id)
        finally:
            # Not within this call: it hands over the next request that waits, which may fail as well, and so on without end.
            self.hub.call_soon(self.semaphore.release)


def _forget_job(pool: Any, request_id: str) -> None:
    """Remove what the pool noted of a request before it failed: a worker that ends would wait for its result."""
    for job in jobs_of(pool):
        if job.correlation_id == request_id and not is_written(job):
            job.discard()
