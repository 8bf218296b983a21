"""The result of one request, received without Celery: for a command that sends one request and ends.

The rule: subscribe first and read afterwards, so that no result is missed. It is read again whenever nothing was published
for a while, because an outage of Redis loses what is published meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.client import PubSub

from nanogrid.connections.result_redis import connect
from nanogrid.errors import RedisUnavailableError
from nanogrid.result import ExecutionResult, not_run
from nanogrid.settings import Settings
from nanogrid.wire.names import RESULT_KEY

RETRIES = 7
"""Redis-py waits about five seconds for these, as long as Celery's backend does here."""

READ_EVERY_S = 5.0
PENDING = "PENDING"
ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
"""Celery's word for a request of which nothing is stored, and its states with a result."""


class Subscription:
    """A connection to Redis for the result of one request. All methods raise RedisUnavailableError if Redis does not answer."""

    def __init__(self, settings: Settings, request_id: str) -> None:
        self._request_id, self._key = request_id, RESULT_KEY + request_id
        self._url = settings.result_url
        self._redis = connect(settings, retries=RETRIES)

    def begin(self) -> None:
        """Subscribe. Before the request is sent, this also shows whether Redis answers."""
        with self._answering():
            _ = self._published

    def state(self) -> str:
        """Celery's state of the request. `PENDING` if nothing is stored."""
        return str(self._stored()["status"])

    def result(self) -> ExecutionResult | None:
        """The stored result, or None if there is none yet. Does not wait."""
        return self._result_in(self._stored())

    def wait(self, timeout_s: float | None) -> ExecutionResult | None:
        """Wait for the result. None if there is none within `timeout_s` seconds (None: no limit)."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.begin()
        while True:
            if (found := self.result()) is not None:
                return found
            left_s = READ_EVERY_S if deadline is None else min(READ_EVERY_S, deadline - time.monotonic())
            if left_s <= 0:
                return None
            if (found := self._receive(left_s)) is not None:
                return found

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _receive(self, timeout_s: float) -> ExecutionResult | None:
        """Return the result if it is published within `timeout_s` seconds. States that are published in between are ignored."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            with self._answering():
                message = self._published.get_message(ignore_subscribe_messages=True, timeout=left_s)
            if message is not None and (found := self._result_in(json.loads(message["data"]))) is not None:
                return found
        return None

    @cached_property
    def _published(self) -> PubSub:
        pubsub: PubSub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(self._key)
        return pubsub

    def _stored(self) -> dict[str, Any]:
        with self._answering():
            stored: Any = self._redis.get(self._key)
        found: dict[str, Any] = {"status": PENDING} if stored is None else json.loads(stored)
        return found

    def _result_in(self, meta: dict[str, Any]) -> ExecutionResult | None:
        return result_of(self._request_id, meta["result"]) if meta["status"] in ENDED else None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            place = urlsplit(self._url)
            without_login = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()
            raise RedisUnavailableError(
                f"Redis at {without_login} does not answer: {error}; "
                "check that it runs and that NANOGRID_RESULT_URL is its address"
            ) from error


def result_of(request_id: str, stored: object) -> ExecutionResult:
    """A stored value as a result. An exception, which Celery stores if no worker stored a result, becomes NOT_RUN."""
    if isinstance(stored, dict) and "outcome" in stored:
        return ExecutionResult.from_wire(stored)
    return not_run(request_id, "", f"Celery stored {stored!r} instead of an ExecutionResult")
