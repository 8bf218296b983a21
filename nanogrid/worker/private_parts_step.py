"""The bootstep that refuses versions of kombu and Celery without the private parts that NanoGrid builds on."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger

from nanogrid.monitoring.celery_private import celery_parts
from nanogrid.sqs.transport.kombu_private import KOMBU

log = get_logger(__name__)


class PrivatePartsStep(bootsteps.StartStopStep):
    """Checks when the worker creates its steps, before any of them starts."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """Raises SystemExit after one line of log for each package that does not fit."""
        super().__init__(worker, **kwargs)
        problems = [problem for parts in (KOMBU, celery_parts()) if (problem := parts.problem()) is not None]
        for problem in problems:
            log.critical("the worker cannot start: %s", problem)
        if problems:
            raise SystemExit(1)

    def include_if(self, worker: Any) -> bool:
        """Never: the check is over."""
        return False
