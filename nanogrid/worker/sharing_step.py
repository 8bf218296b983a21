"""The bootstep that prepares the main process for its forks: children share the memory of what it has loaded.

The rule: what every child needs is imported and read before the first fork. What then exists is kept from the garbage
collector, here and in each child, because a collection writes to each object it looks at, and a page that is written to is
shared no longer.
"""

from __future__ import annotations

import gc
import importlib
from contextlib import suppress
from typing import Any

from billiard.util import get_pdeathsig
from celery import bootsteps, signals

from nanogrid.connections import s3
from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings
from nanogrid.worker.metrics_step import MetricsStep
from nanogrid.worker.owner_step import OwnerStep
from nanogrid.worker.telemetry_step import TelemetryStep

USED_BY_CHILDREN = (
    "encodings.cp437",  # zipfile decodes names with it
    "encodings.idna",  # socket, for the name of a host
    "nanogrid.execution.container.launched_run",
    "nanogrid.execution.executor",
    "nanogrid.execution.pool.child.lease",
)
"""Modules that are imported while a request runs."""


class SharingStep(bootsteps.StartStopStep):
    """Starts after all steps that the process pool requires, and right before the pool forks its children."""

    requires = (TelemetryStep, OwnerStep, MetricsStep)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._settings: Settings = worker.app.settings

    def start(self, worker: Any) -> None:
        """Load what children use. Children that replace others are forked from the same process, and share it too."""
        for module in USED_BY_CHILDREN:
            importlib.import_module(module)
        with suppress(ConfigurationError):  # the requests that need S3 report it
            s3.make_for_children(self._settings)
        with suppress(OSError):
            get_pdeathsig()  # each child sets its own, and where cffi is installed, billiard parses C for that
        gc.collect()
        # Celery collects before each fork. Without this, that would write to all objects once for each child.
        signals.worker_before_create_process.connect(_freeze)
        signals.worker_ready.connect(_all_forked)

    def stop(self, worker: Any) -> None:
        """Freeze no longer, also if the worker was never ready."""
        _all_forked()

    terminate = stop


def _freeze(**_: Any) -> None:
    """Keep everything that exists from the garbage collector, for the life of this process and its children."""
    gc.freeze()


def _all_forked(**_: Any) -> None:
    """A child that is forked later replaces another one. What the main process has made by then may become garbage."""
    signals.worker_before_create_process.disconnect(_freeze)
    signals.worker_ready.disconnect(_all_forked)
