"""The bootstep that refuses every Celery pool except prefork, before any part of the worker starts."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.concurrency import ALIASES
from celery.concurrency.prefork import TaskPool
from celery.utils.log import get_logger

log = get_logger(__name__)


class PreforkStep(bootsteps.StartStopStep):
    """Only a child can be killed when its function must end. A thread or greenlet cannot, and the main process must not be."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """Check the pool. Celery creates all steps before it starts any. Raises SystemExit."""
        super().__init__(worker, **kwargs)
        if not issubclass(worker.pool_cls, TaskPool):
            log.critical(
                "the worker cannot start: its pool is %s, which cannot end a running function; NanoGrid works with "
                "prefork only: remove -P and --pool, and worker_pool from Celery's configuration",
                _name(worker.pool_cls),
            )
            raise SystemExit(1)

    def include_if(self, worker: Any) -> bool:
        """Never: `__init__` has done the check."""
        return False


def _name(pool: type) -> str:
    """Return the name that `-P` has for a pool, or its class if there is none."""
    where = f"{pool.__module__}:{pool.__name__}"
    return next((name for name, known in ALIASES.items() if known == where and name != "custom"), where)
