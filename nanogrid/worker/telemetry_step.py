"""The bootstep that receives events from the worker's processes, for the metrics and the tuner."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker import components

from nanogrid.connections import forks
from nanogrid.connections.result_redis import connect
from nanogrid.metrics.event_metrics import EventMetrics
from nanogrid.settings import Settings
from nanogrid.telemetry.event_thread import EventThread
from nanogrid.tuner.learner import Learner
from nanogrid.tuner.store import TunerStore
from nanogrid.worker.state import WorkerState

LEARN_TIMEOUT_S = 5.0
"""How long a stopping worker waits until the tuner has stored the last runs."""


class TelemetryStep(bootsteps.StartStopStep):
    """Starts before the children are forked, and stops after they have ended."""

    requires = (components.Hub,)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._settings: Settings = worker.app.settings
        self._state: WorkerState = worker.nanogrid
        self._learner = Learner(lambda: TunerStore(self._settings, connect(self._settings, retries=1)))
        self._events: EventThread | None = None

    def start(self, worker: Any) -> None:
        """Open the pipe to which children write their events."""
        self._learner.start()
        self._events = EventThread((self._learner, EventMetrics(self._state.registry, self._settings)))
        forks.close_in_child(self._events)
        self._events.start()

    def stop(self, worker: Any) -> None:
        """Handle the last events and stop."""
        if self._events is not None:
            forks.forget(self._events)
            self._events.stop()
            self._events = None
            self._learner.stop(LEARN_TIMEOUT_S)

    terminate = stop
