"""The thread of the main process that reads the events of a worker's processes and passes them to its consumers.

The rule: consumers of events never delay the processes that emit them. The thread reads events in batches, so that a run does not wake it.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Sequence

from nanogrid.telemetry.events import Event, EventPipe

log = logging.getLogger(__name__)

BATCH_S = 0.2
"""How long the thread collects events after the first one arrived."""

Consumer = Callable[[Sequence[Event]], None]
"""Handles a batch of events. Its exceptions are logged; a batch is never passed to it twice."""


class EventThread:
    """One thread and its pipe. Consumers are called one after the other, in the order given."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self._pipe = EventPipe()
        self._consumers = list(consumers)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Start. Children that are forked from now on can emit."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, after all events emitted so far are handled."""
        self._stopping.set()
        self._thread.join()
        self._handle(self._pipe.read())
        self._pipe.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self._pipe.leave_to_parent()

    def _run(self) -> None:
        readable = select.poll()
        readable.register(self._pipe.fileno(), select.POLLIN)
        while not self._stopping.is_set():
            if readable.poll(BATCH_S * 1000):
                self._stopping.wait(BATCH_S)
                self._handle(self._pipe.read())

    def _handle(self, events: Sequence[Event]) -> None:
        if not events:
            return
        for consumer in self._consumers:
            try:
                consumer(events)
            except Exception:  # one consumer that fails must not cost the others their events
                log.exception("%d events could not be handled", len(events))
