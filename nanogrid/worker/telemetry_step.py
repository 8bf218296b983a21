"""The bootstep that takes what the processes of a worker tell, and has it accounted for."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker import components
from prometheus_client import CollectorRegistry

from nanogrid.connections.result_redis import connect
from nanogrid.metrics.event_metrics import EventMetrics
from nanogrid.settings import Settings
from nanogrid.telemetry.event_thread import EventThread
from nanogrid.tuner.learner import Learner
from nanogrid.tuner.store import TunerStore

FAREWELL_S = 5.0
"""How long a worker that ends waits for the last runs to be learned."""


class TelemetryStep(bootsteps.StartStopStep):
    """Listens before the children are there, and until they are gone."""

    requires = (components.Hub,)
    ledger: EventThread | None = None
    """The ledger of this process, where it has one; a child finds its parent's."""

    registry: CollectorRegistry
    """The numbers of this worker."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._settings: Settings = worker.app.settings
        self._learner = Learner(lambda: TunerStore(self._settings, connect(self._settings, retries=1)))

    def start(self, worker: Any) -> None:
        """Open the pipe that children tell through."""
        TelemetryStep.registry = CollectorRegistry()
        self._learner.start()
        TelemetryStep.ledger = EventThread((self._learner, EventMetrics(TelemetryStep.registry, self._settings)))
        TelemetryStep.ledger.start()

    def stop(self, worker: Any) -> None:
        """Count the last events and stop."""
        if TelemetryStep.ledger is not None:
            TelemetryStep.ledger.stop()
            TelemetryStep.ledger = None
            self._learner.stop(FAREWELL_S)

    terminate = stop
