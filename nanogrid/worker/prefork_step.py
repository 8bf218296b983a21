"""The bootstep that refuses every pool of Celery's but prefork, before anything of the worker is started."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.concurrency import ALIASES
from celery.concurrency.prefork import TaskPool
from celery.utils.log import get_logger

log = get_logger(__name__)


class PreforkStep(bootsteps.StartStopStep):
    """A child is killed where its function has to end; a thread or a greenlet cannot be, and the main process must not be."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """Called for each step before any of them makes something. Raises SystemExit."""
        super().__init__(worker, **kwargs)
        if not issubclass(worker.pool_cls, TaskPool):
            log.critical(
                "the worker cannot start: its pool is %s, where a running function cannot be ended; NanoGrid works with "
                "prefork alone: leave out -P and --pool, and worker_pool in Celery's configuration",
                _name(worker.pool_cls),
            )
            raise SystemExit(1)

    def include_if(self, worker: Any) -> bool:
        """Never: it has looked already."""
        return False


def _name(pool: type) -> str:
    """What `-P` calls a pool, or its class where that is all it is known by."""
    where = f"{pool.__module__}:{pool.__name__}"
    return next((name for name, known in ALIASES.items() if known == where and name != "custom"), where)
