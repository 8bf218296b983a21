"""Adds the runs of a worker's children to the tuner's records, in a thread of the worker's main process.

The rule: while Redis is down, only the samples kept here wait. Their number is limited; runs over the limit are dropped,
counted, and logged once Redis answers again.
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
"""Runs kept while Redis is down, about 10 MB. The oldest are dropped first."""

BATCH = 500
"""Runs stored at a time."""

RETRY_S = 1.0


class Learner:
    """A consumer of the event thread, with its own thread. All mutable state is guarded by `_changed`.

    `open_store` opens the store with its Redis client; the thread that uses it calls it.
    """

    def __init__(self, open_store: Callable[[], TunerStore]) -> None:
        self._open_store = open_store
        self._waiting: deque[RunEvent] = deque()
        self._under_way = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def __call__(self, events: Sequence[Event]) -> None:
        """Keep the runs of a batch of events. Never waits for Redis."""
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
        """Store the remaining runs, for at most `timeout_s` seconds, and stop."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            lost = len(self._waiting) + self._under_way + self._dropped
        if lost:
            log.warning("the tuner has not learned from %d runs: Redis did not answer", lost)

    def _run(self) -> None:
        store = self._open_store()
        while batch := self._next():
            try:
                if not self._learn(batch, store):
                    return
            except Exception:  # one bad run must not keep the tuner from learning from all others
                log.exception("the tuner could not learn from %s", ", ".join(batch.runs))
            with self._changed:
                self._under_way = 0

    def _next(self) -> SampleBatch | None:
        """Wait for runs and return them. Returns None once the learner stops and all runs are stored."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            runs = list(islice(self._waiting, BATCH))
            for _ in runs:
                self._waiting.popleft()
            self._under_way = len(runs)
        return SampleBatch.of(runs) if runs else None

    def _learn(self, batch: SampleBatch, store: TunerStore) -> bool:
        """Store a batch, and retry while Redis is down. Returns False if the learner stops before that."""
        down = False
        while True:
            try:
                store.learn(batch)
                break
            except redis.RedisError as error:
                if not down:
                    log.warning("the tuner cannot learn now (%s); runs wait for Redis, trying again", error)
                down = True
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, RETRY_S):
                    return False
        if down:
            log.info("the tuner learns again")
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("the tuner has not learned from %d runs: they were too many while Redis was down", dropped)
        return True
