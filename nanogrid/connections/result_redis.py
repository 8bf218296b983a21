"""The client for the result Redis, and which of its errors are temporary: no writes now, demoted to a replica, busy.

The rule: a command that fails with a temporary error is retried on a new connection. redis-py retries only if Redis does not
answer; then a request whose result Redis refuses would end without one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from nanogrid.settings import Settings

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
"""How long connecting to the result Redis, and each answer, may take before it counts as unavailable."""

PASSING = (
    redis.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
NAMED = re.compile(r"(?:^|-)(?:NOREPLICAS|MISCONF|UNBLOCKED|BUSY|READONLY|OOM)\b")
"""Temporary errors that redis-py has no class for, and the names that an older Redis gives the others within a script."""

IN_A_PIPELINE = " of pipeline caused error: "
"""redis-py puts this, after the command, before the error's text from Redis."""


def text_of(error: BaseException) -> str:
    """The error's text from Redis, without the command. A pipeline's error quotes its command, which may hold a function's output."""
    return str(error).rpartition(IN_A_PIPELINE)[2]


def passes(error: BaseException) -> bool:
    """Whether an error is temporary, so that the same command may succeed later."""
    return isinstance(error, PASSING) or (isinstance(error, redis.ResponseError) and bool(NAMED.search(text_of(error))))


class PatientRetry(Retry):
    """redis-py's retries, for a Redis that does not answer and for temporary errors. Each retry uses a new connection."""

    def __init__(self, backoff: Any, retries: int) -> None:
        super().__init__(backoff, retries, (redis.ConnectionError, redis.TimeoutError, redis.ResponseError))

    def call_with_retry(
        self, do: Any, fail: Any, is_retryable: Callable[[Exception], bool] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Repeat a command until it succeeds, fails for good or has no retries left. Endless retries log one warning."""
        logged = self.get_retries() >= 0

        def may_help(error: Exception) -> bool:
            if isinstance(error, redis.ResponseError) and not passes(error):
                return False
            if is_retryable is not None and not is_retryable(error):
                return False
            nonlocal logged
            if not logged:
                logged = True
                log.warning("Redis refused a command (%s); retrying until it succeeds", text_of(error))
            return True

        return super().call_with_retry(do, fail, may_help, *args, **kwargs)


@cache
def driver() -> dict[str, Any]:
    """Arguments of a client that say how redis-py names itself to Redis. They are made once per process and its children.

    A client without them reads the metadata of redis-py's package from disk for each of its connections.
    """
    try:
        from redis.driver_info import DriverInfo
    except ImportError:  # an older redis-py
        return {}
    return {"driver_info": DriverInfo()}


def connect(settings: Settings, *, retries: int = 20) -> redis.Redis:
    """A client for the result Redis that survives a restart or a failover: it retries with backoff for about half a minute."""
    return redis.Redis.from_url(
        settings.result_url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        health_check_interval=15,
        retry=PatientRetry(ExponentialBackoff(cap=2, base=0.05), retries),
        **driver(),
    )
