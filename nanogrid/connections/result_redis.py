"""The client for the result Redis, and which of its refusals pass by themselves: no writes just now, a replica by now, busy.

The rule: what passes is tried again, on a new connection, and nothing is given up for it. redis-py takes only a Redis that is
away for that; a request whose result is refused would end without one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from nanogrid.settings import Settings

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
"""How long the result Redis may take to be connected to, and to answer, before it counts as away."""

PASSING = (
    redis.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
NAMED = re.compile(r"(?:^|-)(?:NOREPLICAS|MISCONF|UNBLOCKED|BUSY|READONLY|OOM)\b")
"""Those that redis-py has no class for, and what an older Redis makes of the others within a script."""

IN_A_PIPELINE = " of pipeline caused error: "
"""What redis-py puts, with the command, before the words of Redis."""


def passes(error: BaseException) -> bool:
    """Whether the same command may be taken later."""
    said = str(error).rpartition(IN_A_PIPELINE)[2]
    return isinstance(error, PASSING) or (isinstance(error, redis.ResponseError) and bool(NAMED.search(said)))


class PatientRetry(Retry):
    """redis-py's retries, for a Redis that is away and for refusals that pass alike. Each one takes a new connection."""

    def __init__(self, backoff: Any, retries: int) -> None:
        super().__init__(backoff, retries, (redis.ConnectionError, redis.TimeoutError, redis.ResponseError))

    def call_with_retry(
        self, do: Any, fail: Any, is_retryable: Callable[[Exception], bool] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Do it until it is done, or refused for good."""
        told = self.get_retries() >= 0  # who gives up says so; who never does says that it waits

        def worth_it(error: Exception) -> bool:
            if isinstance(error, redis.ResponseError) and not passes(error):
                return False
            if is_retryable is not None and not is_retryable(error):
                return False
            nonlocal told
            if not told:
                told = True
                log.warning("Redis does not take a command (%s); it is sent again", error)
            return True

        return super().call_with_retry(do, fail, worth_it, *args, **kwargs)


def connect(settings: Settings, *, retries: int = 20) -> redis.Redis:
    """A client for the result Redis that rides out a restart or a failover: about half a minute of retries with backoff."""
    return redis.Redis.from_url(
        settings.result_url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        health_check_interval=15,
        retry=PatientRetry(ExponentialBackoff(cap=2, base=0.05), retries),
    )
