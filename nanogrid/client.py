"""The client of a producer: send requests, wait for results, read, cancel, upload code, map and reduce.

    client = Client()
    request_id = client.submit({"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"})
    print(client.wait(request_id).stdout)

It needs neither Docker nor a configuration file. Settings come from the environment or as an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from typing import Any

from celery import chord
from celery.result import AsyncResult
from pydantic import JsonValue

from nanogrid.celery import NanoGrid, make_app
from nanogrid.celery import app as default_app
from nanogrid.errors import InvalidRequestError, RedisUnavailableError, ResultUnavailableError
from nanogrid.request import FunctionRequest, new_request_id
from nanogrid.result import ExecutionResult
from nanogrid.results.mapping import PartFailure
from nanogrid.results.stream.entry import StreamedResult
from nanogrid.results.stream.follower import follow as follow_stream
from nanogrid.results.subscription import result_of
from nanogrid.settings import Settings, current
from nanogrid.sqs.submission import Submission
from nanogrid.telemetry import tracing
from nanogrid.wire.names import EXECUTE, REDUCE

MAP_LIMIT = 10_000
INPUTS = ("payload", "stdin", "stdinBase64")
"""Fields of a request that a map sets."""


class Client:
    """A producer's access to one NanoGrid deployment. Threads may share it.

    `settings` default to those of the process, from `nanogrid.configure` or the environment. Creating a client opens no
    connection. Methods that read results raise `RedisUnavailableError` if the result Redis does not answer, methods that send
    raise kombu's `OperationalError` if SQS does not, and all raise `ConfigurationError` if a setting or queue is wrong.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.app: NanoGrid = default_app if settings is None else make_app(settings)
        """The Celery app that sends and reads."""

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self.app.settings

    def submit(self, request: dict[str, Any] | FunctionRequest) -> str:
        """Send a request and return its id.

        `request` is a FunctionRequest or its JSON object with camelCase keys. Raises InvalidRequestError for an invalid request,
        and RedisUnavailableError if the result Redis does not answer, both before anything is sent.
        """
        tracing.begin(self.settings)
        submission = Submission.of(_wire(request), self.settings)
        self.app.send_task(EXECUTE, args=(submission.wire,), **submission.options())
        return submission.task_id

    def submit_many(self, requests: Iterable[dict[str, Any] | FunctionRequest]) -> list[str]:
        """Send requests, up to ten with one call of SQS, and return their ids in the order of `requests`.

        All are checked first: InvalidRequestError and RedisUnavailableError are raised before anything is sent. If SQS refuses some of
        them or does not answer, raises SubmissionError, which names the ones that were sent and the others.
        """
        tracing.begin(self.settings)
        submissions = [Submission.of(_wire(request), self.settings) for request in requests]
        with _sent_together():
            for each in submissions:
                self.app.send_task(EXECUTE, args=(each.wire,), **each.options())
        return [each.task_id for each in submissions]

    def wait(self, request_id: str, timeout_s: float | None = None) -> ExecutionResult:
        """Wait for a result and return it, whatever its outcome.

        Raises ResultUnavailableError if there is none within `timeout_s` seconds (None: no limit), and RedisUnavailableError if
        Redis does not answer at the start. If Redis stops answering later, the wait continues until it answers again.
        """
        from celery.exceptions import TimeoutError as CeleryTimeoutError

        handle = self._handle(request_id)
        try:
            return result_of(request_id, handle.get(timeout=timeout_s, propagate=False))
        except CeleryTimeoutError:
            handle.backend.remove_pending_result(handle)  # else each wait that times out leaves one
            raise ResultUnavailableError(
                f"request {request_id!r} has no result after {timeout_s:g} s; {_state(handle)}"
            ) from None

    def result(self, request_id: str) -> ExecutionResult:
        """The stored result. Does not wait.

        Raises ResultUnavailableError if there is none: the request is unknown or not finished, or its result has expired.
        """
        handle = self._handle(request_id)
        if not handle.ready():
            hint = "unknown, not started or expired" if handle.state == "PENDING" else f"state {handle.state}"
            raise ResultUnavailableError(f"request {request_id!r} has no result: {hint}")
        return result_of(request_id, handle.result)

    def state(self, request_id: str) -> str:
        """Celery's state of the request: `PENDING` (waits, or unknown), `STARTED`, `RETRY` or `SUCCESS` (has a result).

        `SUCCESS` says nothing about the outcome of the run: the result does.
        """
        return str(self._handle(request_id).state)

    def cancel(self, request_id: str) -> bool:
        """Cancel a request that waits or runs; a running function is killed. Returns False if it already has a result.

        Its result then has the outcome `CANCELLED`. Only running workers receive the command: with no worker up, a waiting
        request runs once one starts. Raises kombu's `OperationalError` if the monitoring Redis does not answer.
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
        """Iterate over results as they are stored, in that order. `function` selects the results of one function id.

        Without a `group`, each follower gets all results from `start` on: `"now"` (the default), `"all"` (those still in the
        stream), an entry's id (the results after it), or a time in milliseconds since 1970. With a `group`, Redis keeps the
        position under the group's name and shares the results among its consumers; `start` applies only to a new group and
        defaults to `"all"`. A result is acknowledged when the iterator is asked for the next one. A result that was not
        acknowledged is delivered again: first to a follower with the same `consumer` (default: the host's name), or after a
        minute to another one. Results of other functions than `function` count as read for the group.

        Ends after `idle_s` seconds without a result (None: never), and with `close()`. A restart of Redis only delays it.
        `missed` of a result is the number of results before it that were trimmed from the stream unread; None if Redis has lost
        results, in a failover or a restart, and their number is unknown.

        Raises redis-py's errors if Redis does not answer at the start, InvalidRequestError for an invalid `start`, and
        ConfigurationError if the deployment has no stream.
        """
        return follow_stream(
            self.settings, function=function, group=group, consumer=consumer, start=start, idle_s=idle_s
        )

    def upload(self, archive: bytes, bucket: str, key: str | None = None) -> tuple[str, str]:
        """Store the bytes of an archive in S3 and return its key and its SHA-256 in hex.

        The key defaults to the digest and `.zip`, so that the same code has the same key. Raises botocore's errors if S3 does not
        accept it.
        """
        from nanogrid.connections.s3 import s3_client

        digest = hashlib.sha256(archive).hexdigest()
        key = key or f"{digest}.zip"
        s3_client(self.settings).put_object(Bucket=bucket, Key=key, Body=archive)
        return key, digest

    def map(self, function: dict[str, Any], payloads: Iterable[JsonValue]) -> list[str]:
        """Send one request per payload and return their ids, in the order of `payloads`.

        `function` is a request's JSON object without payload and stdin. The ids are its `requestId`, or a new one, and `/0`,
        `/1`, ... At most 10 000 payloads. Sends and raises as `submit_many` does.
        """
        return self.submit_many(_parts(function, payloads, self.settings))

    def map_reduce(
        self,
        function: dict[str, Any],
        payloads: Iterable[JsonValue],
        reducer: dict[str, Any],
        *,
        on_failure: PartFailure = PartFailure.FAIL,
    ) -> str:
        """Run `function` on every payload, then `reducer` on the list of results, and return the reducer's request id.

        `function` and `reducer` are JSON objects of requests without payload and stdin. The reducer's payload is the list of the
        parts' ExecutionResults, as JSON objects in the order of `payloads`. `on_failure` says how a part that does not succeed
        affects the reducer. The parts' ids are the reducer's id and `/0`, `/1`, ... At most 10 000 payloads, at least one.
        Raises InvalidRequestError before anything is sent, and SubmissionError if some parts were not sent: the reducer then does not run.
        """
        tracing.begin(self.settings)
        for name in INPUTS:
            if reducer.get(name) is not None:
                raise InvalidRequestError(
                    name, "the reducer's input is the list of the parts' results: leave this field out"
                )
        final = Submission.of(reducer, self.settings)
        named = {**function, "requestId": final.task_id}
        parts = [Submission.of(part, self.settings) for part in _parts(named, payloads, self.settings)]
        if not parts:
            raise InvalidRequestError("payloads", "there are none, and a map needs at least one")
        header = [
            self.app.signature(EXECUTE, args=(part.wire,), options=part.options(), app=self.app) for part in parts
        ]
        ids = [part.task_id for part in parts]
        body = self.app.signature(
            REDUCE, args=(final.wire, ids, on_failure.value), options=final.options(), app=self.app
        )
        with _sent_together():
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
    """Iterate over results as they are stored: `Client(settings).follow(...)` without creating a Celery app."""
    return follow_stream(
        settings or current(), function=function, group=group, consumer=consumer, start=start, idle_s=idle_s
    )


def _sent_together() -> AbstractContextManager[object]:
    from nanogrid.sqs.transport.sending import sent_together  # loads boto

    return sent_together()


def _state(handle: AsyncResult) -> str:
    try:
        return f"its state is {handle.state}"
    except RedisUnavailableError as away:
        return str(away)


def _wire(request: dict[str, Any] | FunctionRequest) -> dict[str, Any]:
    return request.to_wire() if isinstance(request, FunctionRequest) else request


def _parts(function: dict[str, Any], payloads: Iterable[JsonValue], settings: Settings) -> list[dict[str, Any]]:
    """One request per payload, with ids that start with the function's request id."""
    for name in INPUTS:
        if function.get(name) is not None:
            raise InvalidRequestError(
                name, "the function of a map gets its input from the payloads: leave this field out"
            )
    name = function.get("requestId") or new_request_id(function, settings)
    parts = [
        {**function, "requestId": f"{name}/{number}", "payload": payload} for number, payload in enumerate(payloads)
    ]
    if len(parts) > MAP_LIMIT:
        raise InvalidRequestError("payloads", f"there are {len(parts)}, and a map has at most {MAP_LIMIT}")
    return parts
