"""Follows the results stream for as long as the caller iterates, across restarts of Redis.

The rule: at least once. With a group, an entry is acknowledged when the caller takes the next one, and not before.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import closing

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from nanogrid.connections.result_redis import passes
from nanogrid.errors import ConfigurationError
from nanogrid.results.stream.entry import StreamedResult, streamed
from nanogrid.results.stream.position import ALL, NOW, check_start
from nanogrid.results.stream.readers import GroupReader, SingleReader, StreamReader
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
"""Longest wait for new entries in one command to Redis."""

PATIENCE_S = 5.0
"""How much longer an answer may take before Redis counts as down."""

ABANDONED_S = 60.0
"""An entry that another consumer of the group has not acknowledged for this long is taken over."""

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two attempts to reach a Redis that is down."""

DOWN = (redis.ConnectionError, redis.TimeoutError)


def follow(
    settings: Settings,
    *,
    function: str | None = None,
    group: str | None = None,
    consumer: str | None = None,
    start: str | None = None,
    idle_s: float | None = None,
    abandoned_s: float = ABANDONED_S,
) -> Generator[StreamedResult, None, None]:
    """Yield results as they are stored. `nanogrid.client.follow` documents the arguments.

    Raises redis-py's own errors if Redis cannot be reached at the start; later it waits for Redis.
    """
    if not settings.stream_entries_limit:
        raise ConfigurationError("there is no results stream to follow: NANOGRID_STREAM_ENTRIES_LIMIT is 0")
    if start is not None:
        check_start(start)
    return _follow(settings, function, group, consumer, start, idle_s, abandoned_s)


def _follow(
    settings: Settings,
    function: str | None,
    group: str | None,
    consumer: str | None,
    start: str | None,
    idle_s: float | None,
    abandoned_s: float,
) -> Generator[StreamedResult, None, None]:
    with closing(_connect(settings)) as client:
        reader: StreamReader
        if group is None:
            reader = SingleReader(client, settings.stream_name, start or NOW)
        else:
            name = consumer or socket.gethostname()
            reader = GroupReader(
                client, settings.stream_name, start or ALL, group=group, consumer=name, abandoned_s=abandoned_s
            )
        reader.open()
        missed: int | None = 0
        last_at = time.monotonic()
        while True:
            left_s = LONGEST_WAIT_S if idle_s is None else max(idle_s - (time.monotonic() - last_at), 0.0)
            try:
                batch = reader.read(min(left_s, LONGEST_WAIT_S))
                if batch.missed is None:
                    missed = None
                elif batch.missed:
                    missed = None if missed is None else missed + batch.missed
                    log.warning("%d results were trimmed before they were read", batch.missed)
                for entry_id, fields in batch.entries:
                    result = _result(entry_id, fields, function, missed)
                    if result is None:
                        reader.skip(entry_id)
                        continue
                    missed = 0
                    yield result
                    last_at = time.monotonic()
                    reader.done(entry_id)
            except (
                *DOWN,
                redis.ResponseError,
            ) as error:  # entries that were read and not yielded are read again: no other consumer has them
                if not isinstance(error, DOWN) and not passes(error):
                    raise
                _wait_for_redis(client, reader, error)
                last_at = time.monotonic()
                continue
            if batch.caught_up and idle_s is not None and time.monotonic() - last_at >= idle_s:
                return


def _result(
    entry_id: str, fields: Mapping[str, str], function: str | None, missed: int | None
) -> StreamedResult | None:
    """Return the result in an entry, or None if it is not of the followed function or not valid."""
    if function is not None and fields.get("functionId") != function:
        return None
    try:
        return streamed(entry_id, fields, missed)
    except (ValueError, KeyError) as error:
        log.warning("entry %s of the results stream was not written by NanoGrid: %r", entry_id, error)
        return None


def _wait_for_redis(client: redis.Redis, reader: StreamReader, error: BaseException) -> None:
    """Wait until Redis answers again and the reader has found its place."""
    since, pause_s = time.monotonic(), SHORTEST_PAUSE_S
    log.warning("Redis does not answer (%s); the results stream continues when it does", error)
    while True:
        client.connection_pool.disconnect()  # the old connections may lead to a primary that has become a replica
        try:
            client.ping()
            reader.open()
        except (*DOWN, redis.ResponseError) as still:
            if not isinstance(still, DOWN) and not passes(still):
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        else:
            break
    gone_s = time.monotonic() - since
    log.warning("Redis answers again after %.1f s; the results stream goes on after %s", gone_s, reader.place)


def _connect(settings: Settings) -> redis.Redis:
    """Create a client that repeats no command: a repeated read after a lost answer would return something else."""
    return redis.Redis.from_url(
        settings.result_url,
        decode_responses=True,
        socket_connect_timeout=PATIENCE_S,
        socket_timeout=LONGEST_WAIT_S + PATIENCE_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
