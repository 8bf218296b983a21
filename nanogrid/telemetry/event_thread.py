"""Hands what the processes of a worker told on to those who keep account of it, in one thread of the main process.

The rule: who keeps account never holds up who works. Events are read in batches, so that a run does not wake this thread.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Sequence

from nanogrid.telemetry.events import Event, EventPipe

log = logging.getLogger(__name__)

GATHER_S = 0.2
"""How long events are gathered after the first one came."""

Taker = Callable[[Sequence[Event]], None]
"""Takes a batch of events. What it raises is logged; the batch is not handed to it again."""


class EventThread:
    """One thread. Takers are called one after the other, in the order given."""

    def __init__(self, takers: Sequence[Taker]) -> None:
        self._reader = EventPipe()
        self._takers = list(takers)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin. Children that are forked from now on can tell."""
        self._thread.start()

    def stop(self) -> None:
        """Hand on what was told until now, and end."""
        self._stopping.set()
        self._thread.join()
        self._hand_on(self._reader.read())
        self._reader.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self._reader.leave_to_parent()

    def _run(self) -> None:
        readable = select.poll()
        readable.register(self._reader.fileno(), select.POLLIN)
        while not self._stopping.is_set():
            if readable.poll(GATHER_S * 1000):
                self._stopping.wait(GATHER_S)
                self._hand_on(self._reader.read())

    def _hand_on(self, events: Sequence[Event]) -> None:
        if not events:
            return
        for taker in self._takers:
            try:
                taker(events)
            except Exception:  # one account that fails must not cost the others theirs
                log.exception("%d events could not be accounted for", len(events))
