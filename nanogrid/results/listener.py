"""How a producer receives its results: it subscribes to the channel of each, and polls for messages that it may have missed.

The rule: while Redis is down, a single command fails within seconds, but a wait for a result goes on. Results that were
published before the subscription or during an outage are looked up, so that nobody waits for a stored result.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from celery.backends.redis import ResultConsumer

log = logging.getLogger(__name__)

POLL_S = 5.0
"""How often a waiting producer polls for results, besides its subscriptions."""

POLL_BATCH = 500
"""Results that one command asks for."""

RETRY_S = 0.5
"""Between two attempts to reach a Redis that is down."""


class Listener(ResultConsumer):
    """Celery's result consumer, except that it never gives up and never misses a result for good.

    All mutable state of its own: when to poll next, and since when Redis has been down. Celery creates one for each thread.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._next_poll = time.monotonic() + POLL_S
        self._down_since: float | None = None

    def consume_from(self, task_id: str) -> None:
        """Subscribe to a result. Raises RedisUnavailableError if Redis does not answer."""
        key = self._get_key_for_task(task_id)
        subscribed = key in self.subscribed_to
        try:
            self.backend.soon(self._subscribe, task_id)
        except BaseException:
            if not subscribed:
                self.subscribed_to.discard(key)
            raise

    def drain_events(self, timeout: float | None = None) -> None:
        """Handle messages for `timeout` seconds. While Redis is down, this is one attempt to reach it and a pause."""
        try:
            self._resubscribe()
            super().drain_events(timeout)
            self._poll_if_due()
        except TimeoutError:
            raise  # the wait is over; this is no connection error
        except self._connection_errors as error:
            self._log_down(error)
            self._pubsub = None
            time.sleep(RETRY_S if timeout is None else min(timeout, RETRY_S))
        else:
            self._log_up()

    def cancel_for(self, task_id: str) -> None:
        """Unsubscribe from a result. A Redis that is down drops its subscriptions by itself.

        So does a connection that is closed. Results are freed together with it, and each would open another one only to unsubscribe.
        """
        if self._pubsub is not None and self._pubsub.connection is None:
            self.subscribed_to.discard(self._get_key_for_task(task_id))
            return
        with contextlib.suppress(*self._connection_errors):
            super().cancel_for(task_id)

    @contextlib.contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        """Make one attempt to subscribe again if the connection was lost. Callers that need more attempts make them."""
        try:
            yield
        except TimeoutError:
            raise
        except self._connection_errors:
            self._pubsub = None
            self._resubscribe()

    def end(self) -> None:
        """Drop all subscriptions at the end of the process, so that objects freed later need neither Redis nor imports."""
        if self._pubsub_lock.acquire(timeout=1):
            try:
                self.subscribed_to.clear()
                for waiting in self._pending_results:
                    waiting.clear()
                self.stop()
            finally:
                self._pubsub_lock.release()

    def _subscribe(self, task_id: str) -> None:
        with self._locked():
            if self._pubsub is None:
                self.subscribed_to.add(self._get_key_for_task(task_id))
                self._resubscribe()
            else:
                self._consume_from(task_id)

    def _resubscribe(self) -> None:
        """Without a connection, open one, subscribe to everything, and poll for results that were published before."""
        with self._locked():
            if self._pubsub is not None:
                return
            self.subscribed_to -= self._pending_unsubscribe
            self._pending_unsubscribe.clear()
            pubsub = self.backend.client.pubsub(ignore_subscribe_messages=True)
            if self.subscribed_to:
                pubsub.subscribe(*self.subscribed_to)
            self._pubsub = pubsub
            self._poll()

    def _poll_if_due(self) -> None:
        if time.monotonic() >= self._next_poll:
            self._poll()

    def _poll(self) -> None:
        """Handle the results that callers wait for and that are stored."""
        self._next_poll = time.monotonic() + POLL_S
        waiting = list({key for mapping in self._pending_results for key in list(mapping)})
        for start in range(0, len(waiting), POLL_BATCH):
            keys = [self._get_key_for_task(task_id) for task_id in waiting[start : start + POLL_BATCH]]
            for stored in self.backend.client.mget(keys):
                if stored:
                    self.on_state_change(self._decode_result(stored), None)

    def _log_down(self, error: BaseException) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            log.warning("Redis does not answer (%s); waiting for it and for results", error)

    def _log_up(self) -> None:
        if self._down_since is not None:
            log.warning("Redis answers again after %.1f s", time.monotonic() - self._down_since)
            self._down_since = None
