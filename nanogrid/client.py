"""What a producer can do beyond `execute_function.delay`: send, wait, read, cancel, upload code, map and reduce.

    client = Client()
    request_id = client.submit({"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"})
    print(client.wait(request_id).stdout)

Needs neither Docker nor a configuration file; settings come from the environment or by argument. Thread-safe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from typing import Any

from celery import chord
from celery.result import AsyncResult
from pydantic import JsonValue

from nanogrid.celery import NanoGrid, make_app
from nanogrid.celery import app as default_app
from nanogrid.errors import InvalidRequestError, RedisUnavailableError, ResultUnavailableError
from nanogrid.request import FunctionRequest, new_request_id
from nanogrid.result import ExecutionResult, not_run
from nanogrid.results.mapping import PartFailure
from nanogrid.results.stream.entry import StreamedResult
from nanogrid.results.stream.follower import follow as follow_stream
from nanogrid.settings import Settings, current
from nanogrid.sqs.submission import Submission
from nanogrid.telemetry import tracing
from nanogrid.wire.names import EXECUTE, REDUCE

MAP_LIMIT = 10_000
INPUTS = ("payload", "stdin", "stdinBase64")
"""Fields of a request that a map fills in itself."""


class Client:
    """A producer's connection to one NanoGrid."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.app: NanoGrid = default_app if settings is None else make_app(settings)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.app.settings

    def submit(self, request: dict[str, Any] | FunctionRequest) -> str:
        """Send a request and return its id. Raises InvalidRequestError or RedisUnavailableError before anything is sent."""
        tracing.begin(self.settings)
        submission = Submission.of(_wire(request), self.settings)
        self.app.send_task(EXECUTE, args=(submission.wire,), **submission.options())
        return submission.task_id

    def wait(self, request_id: str, timeout_s: float | None = None) -> ExecutionResult:
        """Wait for a result. Raises ResultUnavailableError when there is none within `timeout_s` (None: no limit).

        A Redis that goes away meanwhile is waited for, too; one that is away at the beginning is a RedisUnavailableError, as
        at everything else that is asked of it.
        """
        from celery.exceptions import TimeoutError as CeleryTimeoutError

        handle = self._handle(request_id)
        try:
            return _read(request_id, handle.get(timeout=timeout_s, propagate=False))
        except CeleryTimeoutError:
            handle.backend.remove_pending_result(handle)  # else it is kept, one for each wait in vain
            raise ResultUnavailableError(
                f"request {request_id!r} has no result after {timeout_s:g} s; {_state(handle)}"
            ) from None

    def result(self, request_id: str) -> ExecutionResult:
        """The stored result. Raises ResultUnavailableError where there is none (yet, any more, or ever)."""
        handle = self._handle(request_id)
        if not handle.ready():
            hint = "unknown, not started or expired" if handle.state == "PENDING" else f"state {handle.state}"
            raise ResultUnavailableError(f"request {request_id!r} has no result: {hint}")
        return _read(request_id, handle.result)

    def state(self, request_id: str) -> str:
        """Celery's word for where the request is: PENDING (or unknown), STARTED, RETRY, SUCCESS."""
        return str(self._handle(request_id).state)

    def cancel(self, request_id: str) -> bool:
        """Cancel a request that waits or runs; a running function is killed. False: it has a result already.

        Somebody must hear it: a request that waits while no worker is alive is run when one comes.
        """
        if self._handle(request_id).ready():
            return False
        self.app.control.revoke(request_id, terminate=True, signal="SIGTERM")
        return True

    def follow(
        self,
        *,
        function: str | None = None,
        group: str | None = None,
        consumer: str | None = None,
        start: str | None = None,
        idle_s: float | None = None,
    ) -> Generator[StreamedResult, None, None]:
        """Every result as it comes, in the order of storing; of one function where `function` is given.

        Without a `group` each follower gets all results, from `start` on: `"now"` (the default), `"all"` that are still
        there, an entry's id (after that one), or a time in milliseconds since 1970. With one, Redis keeps the place under
        its name and shares the results out among its consumers; `start` counts where the group is new, and is `"all"` by
        default. A result is acknowledged when the next one is taken; one that was not is handed out again, first, to a
        follower with the same `consumer` (default: the host's name), or after a minute to another one. Results of other
        functions than `function` count as read for the group.

        Ends when nothing came for `idle_s` seconds (None: never), and with `close()`. A restart of Redis is ridden out.
        `missed` of a result says how many before it were trimmed from the stream unread; None where Redis has lost results, by a
        failover or a restart, and nobody can tell how many. Raises redis' errors where Redis
        cannot be reached at the beginning, InvalidRequestError for a `start` that cannot be understood, ConfigurationError
        where there is no stream.
        """
        return follow_stream(
            self.settings, function=function, group=group, consumer=consumer, start=start, idle_s=idle_s
        )

    def upload(self, archive: bytes, bucket: str, key: str | None = None) -> tuple[str, str]:
        """Put an archive into S3 and return its key and SHA-256. The key defaults to the digest: same code, same key."""
        from nanogrid.connections.s3 import s3_client

        digest = hashlib.sha256(archive).hexdigest()
        key = key or f"{digest}.zip"
        s3_client(self.settings).put_object(Bucket=bucket, Key=key, Body=archive)
        return key, digest

    def map(self, function: dict[str, Any], payloads: Iterable[JsonValue]) -> list[str]:
        """Send one request per payload and return their ids, in order."""
        return [self.submit(part) for part in _parts(function, payloads, self.settings)]

    def map_reduce(
        self,
        function: dict[str, Any],
        payloads: Iterable[JsonValue],
        reducer: dict[str, Any],
        *,
        on_failure: PartFailure = PartFailure.FAIL,
    ) -> str:
        """Run `function` over every payload, then `reducer` over the list of results, and return the reducer's id.

        `function` and `reducer` are requests without payload and stdin. The reducer's payload is the list of the parts'
        ExecutionResults in the order of `payloads`; `on_failure` says what a part that did not succeed does to it. The
        parts' ids are the reducer's id and `/0`, `/1`, ... Raises InvalidRequestError before anything is sent.
        """
        tracing.begin(self.settings)
        for name in INPUTS:
            if reducer.get(name) is not None:
                raise InvalidRequestError(
                    name, "the reducing function has none of its own; it reads the parts' results"
                )
        final = Submission.of(reducer, self.settings)
        named = {**function, "requestId": final.task_id}
        parts = [Submission.of(part, self.settings) for part in _parts(named, payloads, self.settings)]
        if not parts:
            raise InvalidRequestError("payloads", "at least one is needed")
        header = [
            self.app.signature(EXECUTE, args=(part.wire,), options=part.options(), app=self.app) for part in parts
        ]
        ids = [part.task_id for part in parts]
        body = self.app.signature(
            REDUCE, args=(final.wire, ids, on_failure.value), options=final.options(), app=self.app
        )
        chord(header, app=self.app)(body)
        return final.task_id

    def _handle(self, request_id: str) -> AsyncResult:
        return AsyncResult(request_id, app=self.app)


def follow(
    settings: Settings | None = None,
    *,
    function: str | None = None,
    group: str | None = None,
    consumer: str | None = None,
    start: str | None = None,
    idle_s: float | None = None,
) -> Generator[StreamedResult, None, None]:
    """Every result as it comes: `Client(settings).follow(...)` without a client."""
    return follow_stream(
        settings or current(), function=function, group=group, consumer=consumer, start=start, idle_s=idle_s
    )


def _state(handle: AsyncResult) -> str:
    try:
        return f"its state is {handle.state}"
    except RedisUnavailableError as away:
        return str(away)


def _wire(request: dict[str, Any] | FunctionRequest) -> dict[str, Any]:
    return request.to_wire() if isinstance(request, FunctionRequest) else request


def _parts(function: dict[str, Any], payloads: Iterable[JsonValue], settings: Settings) -> list[dict[str, Any]]:
    """One request per payload, with ids of its own under the function's request id."""
    for name in INPUTS:
        if function.get(name) is not None:
            raise InvalidRequestError(name, "the function of a map has none of its own; it comes from the payloads")
    name = function.get("requestId") or new_request_id(function, settings)
    parts = [
        {**function, "requestId": f"{name}/{number}", "payload": payload} for number, payload in enumerate(payloads)
    ]
    if len(parts) > MAP_LIMIT:
        raise InvalidRequestError("payloads", f"{len(parts)} are more than the accepted {MAP_LIMIT}")
    return parts


def _read(request_id: str, stored: object) -> ExecutionResult:
    """A stored value as a result. What Celery stores where no worker could (an exception) becomes NOT_RUN."""
    if isinstance(stored, dict) and "outcome" in stored:
        return ExecutionResult.from_wire(stored)
    return not_run(request_id, "", f"Celery stored no ExecutionResult but {stored!r}")
