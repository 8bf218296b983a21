"""Brings the runs of a worker's children into the tuner's records, in a thread of the worker's main process.

The rule: a Redis that is away costs nothing but time. Runs wait for it here, in bounded number; those that find no room are
counted, and told when it is back.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

import redis

from nanogrid.telemetry.events import Event, RunEvent
from nanogrid.tuner.store import SampleBatch, TunerStore

log = logging.getLogger(__name__)

WAITING_LIMIT = 20_000
"""Runs kept while Redis is away, about 10 MB. The oldest go first."""

BATCH = 500
"""Runs that are written at a time."""

AGAIN_S = 1.0


class Learner:
    """A taker of the ledger's with a thread of its own. All mutable state is guarded by `_changed`.

    `make` makes the client of Redis; it is called in the thread that uses it.
    """

    def __init__(self, make: Callable[[], TunerStore]) -> None:
        self._make = make
        self._waiting: deque[RunEvent] = deque()
        self._under_way = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def __call__(self, events: Sequence[Event]) -> None:
        """Take the runs of a batch. Never waits for Redis."""
        runs = [event for event in events if isinstance(event, RunEvent)]
        if not runs:
            return
        with self._changed:
            self._waiting.extend(runs)
            while len(self._waiting) > WAITING_LIMIT:
                self._waiting.popleft()
                self._dropped += 1
            self._changed.notify()

    def stop(self, timeout_s: float) -> None:
        """Write what waits if that goes quickly, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            lost = len(self._waiting) + self._under_way + self._dropped
        if lost:
            log.warning("the tuner has not learned of %d runs: Redis did not answer", lost)

    def _run(self) -> None:
        tuning = self._make()
        while batch := self._next():
            try:
                if not self._learn(batch, tuning):
                    return
            except Exception:  # what one run holds must not keep the tuner from all others
                log.exception("the tuner could not learn from %s", ", ".join(batch.runs))
            with self._changed:
                self._under_way = 0

    def _next(self) -> SampleBatch | None:
        """The next runs, as soon as there are any. None: the end has come, and all is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            runs = list(islice(self._waiting, BATCH))
            for _ in runs:
                self._waiting.popleft()
            self._under_way = len(runs)
        return SampleBatch.of(runs) if runs else None

    def _learn(self, batch: SampleBatch, tuning: TunerStore) -> bool:
        """Write a batch, as soon as Redis lets us. False: the end came first."""
        away = False
        while True:
            try:
                tuning.learn(batch)
                break
            except redis.RedisError as error:
                if not away:
                    log.warning("the tuner cannot learn now (%s); runs wait for Redis, trying again", error)
                away = True
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, AGAIN_S):
                    return False
        if away:
            log.info("the tuner learns again")
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("the tuner has not learned of %d runs: they were too many while Redis was away", dropped)
        return True
