"""How a producer hears of its results: it listens on each one's channel, and looks where it may have heard nothing.

The rule: a Redis that is away is said in seconds to who asks for something, and is waited for by who waits for a result. What it
told in the meantime, or before it knew that somebody listens, is looked up: nobody waits for what is stored.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from celery.backends.redis import ResultConsumer

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""How often whoever waits looks whether the result is there, besides listening."""

LOOK_AT_ONCE = 500
"""Results that are asked for in one command."""

AGAIN_S = 0.5
"""Between two attempts to reach a Redis that is away."""


class Listener(ResultConsumer):
    """Celery's result consumer, that never gives up, and hides no result for good.

    All mutable state of its own: when to look next, and since when Redis has been away. Celery has one for each thread.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self._away_since: float | None = None

    def consume_from(self, task_id: str) -> None:
        """Listen for a result. Raises RedisUnavailableError where Redis cannot be told."""
        key = self._get_key_for_task(task_id)
        listened = key in self.subscribed_to
        try:
            self.backend.soon(self._listen, task_id)
        except BaseException:
            if not listened:
                self.subscribed_to.discard(key)
            raise

    def drain_events(self, timeout: float | None = None) -> None:
        """Take what is told within `timeout` seconds. While Redis is away, that is a pause and one attempt to reach it."""
        try:
            self._listen_again()
            super().drain_events(timeout)
            self._look_at_times()
        except TimeoutError:
            raise  # a wait that has ended, and no trouble
        except self._connection_errors as error:
            self._say_away(error)
            self._pubsub = None
            time.sleep(AGAIN_S if timeout is None else min(timeout, AGAIN_S))
        else:
            self._say_back()

    def cancel_for(self, task_id: str) -> None:
        """Stop listening for a result. A Redis that is away has forgotten by itself."""
        with contextlib.suppress(*self._connection_errors):
            super().cancel_for(task_id)

    @contextlib.contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        """One attempt to listen anew where the connection was lost; whoever needs more of them makes them."""
        try:
            yield
        except TimeoutError:
            raise
        except self._connection_errors:
            self._pubsub = None
            self._listen_again()

    def end(self) -> None:
        """Listen for nothing any more, at the end of the process: what is dropped later needs no Redis, and no import."""
        if self._pubsub_lock.acquire(timeout=1):
            try:
                self.subscribed_to.clear()
                for waiting in self._pending_results:
                    waiting.clear()
                self.stop()
            finally:
                self._pubsub_lock.release()

    def _listen(self, task_id: str) -> None:
        with self._locked():
            if self._pubsub is None:
                self.subscribed_to.add(self._get_key_for_task(task_id))
                self._listen_again()
            else:
                self._consume_from(task_id)

    def _listen_again(self) -> None:
        """Listen on a new connection where there is none, and look at what was told before."""
        with self._locked():
            if self._pubsub is not None:
                return
            self.subscribed_to -= self._pending_unsubscribe
            self._pending_unsubscribe.clear()
            pubsub = self.backend.client.pubsub(ignore_subscribe_messages=True)
            if self.subscribed_to:
                pubsub.subscribe(*self.subscribed_to)
            self._pubsub = pubsub
            self._look()

    def _look_at_times(self) -> None:
        if time.monotonic() >= self._next_look:
            self._look()

    def _look(self) -> None:
        """Take the results that somebody waits for and that are stored."""
        self._next_look = time.monotonic() + LOOK_EVERY_S
        waiting = list({key for mapping in self._pending_results for key in list(mapping)})
        for start in range(0, len(waiting), LOOK_AT_ONCE):
            keys = [self._get_key_for_task(task_id) for task_id in waiting[start : start + LOOK_AT_ONCE]]
            for stored in self.backend.client.mget(keys):
                if stored:
                    self.on_state_change(self._decode_result(stored), None)

    def _say_away(self, error: BaseException) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("Redis does not answer (%s); results are waited for until it does", error)

    def _say_back(self) -> None:
        if self._away_since is not None:
            log.warning("Redis answers again after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None
