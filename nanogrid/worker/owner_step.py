"""The bootstep that owns the containers of a worker."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import components

from nanogrid.errors import ConfigurationError
from nanogrid.execution.pool.child.lease import use_owner
from nanogrid.execution.pool.owner.owner import Owner
from nanogrid.settings import Settings
from nanogrid.telemetry import tracing
from nanogrid.worker.telemetry_step import TelemetryStep

log = get_logger(__name__)

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another one wants it. Python's 5 ms are longer than a whole warm run."""
USED_BY_THREADS = ("docker", "docker.errors", "docker.utils", "requests.exceptions")


class OwnerStep(bootsteps.StartStopStep):
    """Owns the containers of this worker. Starts before the children and stops after them."""

    requires = (components.Hub, TelemetryStep)
    owner: Owner | None = None
    """The owner of this process, where it has one; a child finds its parent's."""
    main_pid = 0

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._settings: Settings = worker.app.settings

    def start(self, worker: Any) -> None:
        """Take the data folder, remove what dead workers left, and listen for the children."""
        OwnerStep.main_pid = os.getpid()
        # A child that is forked while a thread imports something finds that module locked for ever: import it all before.
        for module in USED_BY_THREADS:
            importlib.import_module(module)
        sys.setswitchinterval(SWITCH_S)
        try:
            tracing.require(self._settings)
            owner = Owner(self._settings)
        except ConfigurationError as error:
            log.critical("the worker cannot start: %s", error)
            raise SystemExit(1) from None
        owner.start()
        OwnerStep.owner = owner
        use_owner(owner.address)
        log.info("containers: owner %s in %s", owner.id, self._settings.data_dir)

    def stop(self, worker: Any) -> None:
        """Destroy every container of this worker."""
        if OwnerStep.owner is not None:
            use_owner(None)
            OwnerStep.owner.stop()
            OwnerStep.owner = None

    terminate = stop
