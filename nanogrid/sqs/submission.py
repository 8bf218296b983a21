"""How a checked request becomes a Celery message: its id, queue and time limits, and the fields that logs may show.

The rule: tasks, the client and the transport's adoption of bare messages all use this module, so that they agree.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NoReturn

from nanogrid.errors import ConfigurationError, EarlierPartError, InvalidRequestError
from nanogrid.request import FunctionRequest, TimeLimits, id_refusal, new_request_id, parse_request, time_limits
from nanogrid.result import ExecutionResult
from nanogrid.settings import Settings
from nanogrid.wire.names import PLAIN_JSON, SENT_AT

SERIALIZERS = ("json", PLAIN_JSON)
"""Serializers whose messages workers accept."""

IN_ONE_TASK = frozenset({"celery.map", "celery.starmap", "celery.chunks"})
"""Celery's tasks that call another task in their own process, once per item."""

EAGER = "task_always_eager"
"""Celery's setting that runs tasks in the producer's process."""

FOR_MANY = "use Client.map_reduce, or group(execute_function.si(request) for request in requests)"

SHOWN_FIELDS = ("requestId", "functionId", "runtime", "s3Bucket", "s3Key", "timeoutMs", "memoryMb", "handler")
"""Request fields that logs, events and Flower may show. Payload and environment may hold secrets."""

INPUTS = ("payload", "stdin", "stdinBase64")
"""Fields for a function's input. A request has at most one of them."""

NAMED = 3
"""Most failed parts that an error message names."""

SHOWN_LENGTH = 80
LARGEST_SHOWN = 10**15


@dataclass(frozen=True)
class Submission:
    """A checked request with its task id, queue and time limits, ready to be sent."""

    request: FunctionRequest
    task_id: str
    queue: str
    limits: TimeLimits

    @classmethod
    def of(
        cls, data: object, settings: Settings, *, task_id: str | None = None, queue: str | None = None
    ) -> Submission:
        """Check a wire object and derive task id, queue and time limits from it. Raises InvalidRequestError.

        The task id is `task_id` if Celery has chosen one (retries, groups), else the request's own, else a new one. The queue
        is the runtime's unless one is given.
        """
        request = parse_named(data, settings, task_id or _own_id(data) or new_request_id(data, settings))
        queue = queue or settings.runtime_table[request.runtime].queue
        if (problem := id_refusal(request.request_id, queue, settings)) is not None:
            raise InvalidRequestError("requestId", problem)
        return cls(request, request.request_id, queue, time_limits(request.timeout_ms, settings))

    @property
    def wire(self) -> dict[str, Any]:
        """The request as its JSON object."""
        return self.request.to_wire()

    def options(self, given: dict[str, Any] | None = None) -> dict[str, Any]:
        """Celery's options for this call. They override the given ones, except headers."""
        given = given or {}
        kept = {key: value for key, value in given.items() if key not in ("exchange", "routing_key")}
        headers = dict(given.get("headers") or {})
        headers[SENT_AT] = headers.get(SENT_AT) or int(time.time() * 1000)
        return {
            **kept,
            "task_id": self.task_id,
            "queue": self.queue,
            "soft_time_limit": self.limits.soft_s,
            "time_limit": self.limits.hard_s,
            "headers": headers,
            "argsrepr": redacted(self.wire),
            "kwargsrepr": "{}",
        }


def parse_named(data: object, settings: Settings, request_id: str, *, queue: str = "") -> FunctionRequest:
    """Check the request in a message with an id. Raises InvalidRequestError, also if the request has another id.

    Result, claim, stream entry, log and environment all use one id. With two ids one request could act for another.
    """
    request = parse_request(data, settings, request_id=request_id)
    if request.request_id == request_id:
        return request
    raise InvalidRequestError(
        "requestId",
        id_refusal(request.request_id, queue, settings)
        or f"{request.request_id!r} is not the id of its message, {request_id!r}: send the same one, or leave this field out",
    )


def _own_id(data: object) -> str | None:
    """The id in a request, or None if it has none or it is not a string. Parsing checks whether it is valid."""
    own = data.get("requestId") if isinstance(data, dict) else None
    return own if isinstance(own, str) else None


def merge_fields(args: Any, kwargs: Any) -> dict[str, Any]:
    """The request in the arguments of `delay({...})`, `delay(requestId=..., ...)` or both.

    If Celery put the result of an earlier part before it, that result becomes the payload. Raises InvalidRequestError for
    other arguments, and EarlierPartError if the earlier part did not succeed.
    """
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    if len(args) > 2 or (args and not isinstance(args[-1], dict)):
        raise InvalidRequestError(
            "",
            f"accepted are one request object or keyword fields, after the result of an earlier part; got {len(args)} arguments",
        )
    fields = {**(args[-1] if args else {}), **kwargs}
    return fields if len(args) < 2 else _with_result_before(args[0], fields)


def _with_result_before(before: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The request with the earlier result as its payload: an ExecutionResult's object, a list of them, or what another task
    returned."""
    refuse_own_input(fields)
    results = [_as_object(each) for each in (before if isinstance(before, (list, tuple)) else [before])]
    failed = [each for each in results if _is_result(each) and not each["success"]]
    if failed:
        ended = ", ".join(f"{each['requestId']} {each['outcome']}" for each in failed[:NAMED])
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise EarlierPartError(f"not run: the earlier part that gives the payload did not succeed: {ended}{more}")
    return {**fields, "payload": results if isinstance(before, (list, tuple)) else results[0]}


def refuse_own_input(fields: dict[str, Any]) -> None:
    """Raise InvalidRequestError if a request that receives the result before it already has an input."""
    for name in INPUTS:
        if fields.get(name) is not None:
            raise InvalidRequestError(
                name,
                "the request has its own input and would also receive the result before it: use .si(...), or leave this field out",
            )


def _as_object(before: Any) -> Any:
    return before.to_wire() if isinstance(before, ExecutionResult) else before


def _is_result(before: Any) -> bool:
    return isinstance(before, dict) and {"requestId", "outcome", "success"} <= before.keys()


def refuse_in_one_task(way: str) -> NoReturn:
    """Raise InvalidRequestError: `way` would run many requests in one task, under one id."""
    raise InvalidRequestError("", f"{way} would run many requests in one task and under one id: {FOR_MANY}")


def refuse_other_forms(serializer: str, compression: str | None) -> None:
    """Raise InvalidRequestError for a serializer or compression that workers do not accept."""
    if serializer not in SERIALIZERS:
        raise InvalidRequestError(
            "serializer", f"{serializer!r} is not accepted: requests are sent as JSON, so leave it out or use 'json'"
        )
    if compression:
        raise InvalidRequestError(
            "compression", f"{compression!r} is not accepted: requests are sent as plain JSON, so leave it out"
        )


def refuse_without_id(name: str) -> NoReturn:
    """Raise InvalidRequestError: a task was called instead of sent, so the request has no id."""
    task = name.rpartition(".")[2]
    raise InvalidRequestError(
        "",
        f"{task} was called directly, without a request id: send one request with {task}.delay; for many, {FOR_MANY}",
    )


def refuse_here(way: str) -> NoReturn:
    """Raise ConfigurationError: `way` would run a function in the producer's process."""
    raise ConfigurationError(
        f"{way} would run a function in this process, but functions run only in a worker's containers: in tests replace "
        "execute_function.apply_async, or send to a local stack, `nanogrid up` (docs/celery.md)"
    )


def redacted(wire: dict[str, Any]) -> str:
    """One line about a request, checked or not, for logs and Flower: plain fields only, never payload or environment."""
    shown = {name: _short(wire[name]) for name in SHOWN_FIELDS if isinstance(wire.get(name), (str, int, float))}
    return f"({shown!r},)"


def _short(value: str | float) -> str | float:
    if isinstance(value, str):
        return value if len(value) <= SHOWN_LENGTH else value[: SHOWN_LENGTH - 1] + "…"
    return value if abs(value) < LARGEST_SHOWN else "…"
