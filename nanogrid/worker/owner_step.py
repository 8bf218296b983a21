"""The bootstep that owns the containers of a worker."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import components

from nanogrid.celery import NanoGrid
from nanogrid.connections import forks
from nanogrid.errors import ConfigurationError
from nanogrid.execution.pool.owner.owner import Owner
from nanogrid.telemetry import tracing
from nanogrid.worker.state import WorkerState
from nanogrid.worker.telemetry_step import TelemetryStep

log = get_logger(__name__)

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another one waits for it. Python's 5 ms exceed a whole warm run."""
USED_BY_THREADS = ("docker", "docker.errors", "docker.utils", "requests.exceptions")


class OwnerStep(bootsteps.StartStopStep):
    """Owns the containers of this worker. Starts before the children are forked, and stops after they have ended."""

    requires = (components.Hub, TelemetryStep)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._app: NanoGrid = worker.app
        self._state: WorkerState = worker.nanogrid

    def start(self, worker: Any) -> None:
        """Lock the data folder, remove what dead workers left there, and listen for the children."""
        # A child that is forked while a thread imports a module finds the import lock taken for ever: import all of them first.
        for module in USED_BY_THREADS:
            importlib.import_module(module)
        sys.setswitchinterval(SWITCH_S)
        settings = self._app.settings
        try:
            tracing.require(settings)
            owner = Owner(settings)
        except ConfigurationError as error:
            log.critical("the worker cannot start: %s", error)
            raise SystemExit(1) from None
        owner.start()
        forks.close_in_child(owner)
        self._state.owner = owner
        self._app.owner_address = owner.address
        log.info("containers: owner %s in %s", owner.id, settings.data_dir)

    def stop(self, worker: Any) -> None:
        """Remove every container of this worker."""
        owner = self._state.owner
        if owner is not None:
            self._app.owner_address = None
            forks.forget(owner)
            owner.stop()
            self._state.owner = None

    terminate = stop
