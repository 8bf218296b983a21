"""What a message in a queue is: a Celery message, a bare request, or garbage; and how a bare request becomes a Celery message.

The rule: these functions are pure and accept any text. They never raise, whatever a sender wrote.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nanogrid.errors import InvalidRequestError
from nanogrid.request import RequestId, id_refusal, required_prefix, time_limits
from nanogrid.settings import Settings
from nanogrid.sqs import plain_json
from nanogrid.sqs.submission import parse_named, redacted
from nanogrid.sqs.transport.message_checks import (
    foreign_id,
    problem_of_headers,
    problem_of_parts,
    problem_of_properties,
)
from nanogrid.wire.aws_events import message_of_sns
from nanogrid.wire.json_bounds import MOST_DIGITS, MOST_NESTED, TOO_DEEP, TOO_LONG, problem_of_value, pruned
from nanogrid.wire.names import EXECUTE, REDUCE, SENT_AT

BARE_ORIGIN = "bare-sqs"
JSON = ("application/json", plain_json.CONTENT_TYPE)
"""Content types of the bodies that are accepted."""

OURS = (EXECUTE, REDUCE)

BYTE_ORDER_MARK = "\ufeff"
BELOW_A_REQUEST = MOST_NESTED + 2
"""Levels of a request that are read: the request, the levels of its fields, and one more that shows that there are too many."""

BELOW_A_BODY = MOST_NESTED + 32
"""Levels of a Celery message's body that are read: a request is in a list of arguments, perhaps in a part that a canvas embeds."""

_REQUEST_ID: TypeAdapter[str] = TypeAdapter(RequestId)


@dataclass(frozen=True)
class CeleryEnvelope:
    """A message that a Celery producer sent: kombu's envelope, as it is in the queue.

    `problem` says why the message must not reach Celery, or is None. The task id can be read in both cases.
    """

    payload: dict[str, Any]
    problem: str | None = None

    @property
    def headers(self) -> dict[str, Any]:
        """Celery's headers: `id` is a request id, `task` a string."""
        headers: dict[str, Any] = self.payload["headers"]
        return headers


@dataclass(frozen=True)
class BareRequest:
    """A JSON object that anyone sent to the queue: a request, valid or not."""

    request: dict[str, Any]


@dataclass(frozen=True)
class Garbage:
    """Neither of the two, and why. `request` is what could be read of it, so that its sender can be answered."""

    problem: str
    request: dict[str, Any] | None = None


def read_body(text: str) -> CeleryEnvelope | BareRequest | Garbage:
    """Classify a message body. Bodies in base64, as kombu sends them by default, and SNS notifications are unpacked."""
    body = _read(text)
    message = message_of_sns(body.request) if isinstance(body, BareRequest) else None
    if message is None:
        return body
    inner = _read(message)
    return body if isinstance(inner, Garbage) else inner


def _read(text: str) -> CeleryEnvelope | BareRequest | Garbage:
    readable = _readable(_without_base64(text), BELOW_A_REQUEST)
    try:
        data = json.loads(readable)
    except (ValueError, RecursionError) as error:
        return _without_long_numbers(readable) or Garbage(f"the body is not JSON: {error}")
    if not isinstance(data, dict):
        return Garbage(f"the body is JSON, but a {type(data).__name__} and not an object")
    if "properties" not in data or "body" not in data:
        return BareRequest(data)
    return _checked_envelope(data)


def _without_long_numbers(text: str) -> Garbage | None:
    """Garbage with the request, if the text is a JSON object that Python cannot read because of its long numbers; else None."""
    try:
        data = json.loads(text, parse_int=lambda digits: None if len(digits) > MOST_DIGITS else int(digits))
    except (ValueError, RecursionError):
        return None
    return Garbage(f"the body {TOO_LONG}", data) if isinstance(data, dict) and "properties" not in data else None


def _readable(text: str, most: int) -> str:
    """JSON text that Python can read: without a byte order mark, and cut off below the levels that are accepted."""
    return pruned(text.removeprefix(BYTE_ORDER_MARK), most)


def _checked_envelope(data: dict[str, Any]) -> CeleryEnvelope | Garbage:
    """Refuse a message that would make kombu or Celery raise an error that nothing catches."""
    headers, properties = data.get("headers"), data["properties"]
    if not isinstance(properties, dict) or not isinstance(properties.get("delivery_info", {}), dict):
        return Garbage("the Celery envelope's properties are not an object")
    if not isinstance(data["body"], str):
        return Garbage("the Celery envelope's body is not a string")
    if not isinstance(headers, dict) or not all(isinstance(headers.get(name), str) for name in ("id", "task")):
        return Garbage("the Celery envelope's headers lack a task and an id")
    if valid_request_id(headers["id"]) is None:
        return Garbage("the Celery envelope's task id is not a valid request id")
    if headers.get("retries", 0) is None:
        del headers["retries"]  # Celery adds to this value
    problem = problem_of_headers(headers) or problem_of_properties(properties) or _make_body_readable(data)
    return CeleryEnvelope(data, problem)


def _make_body_readable(data: dict[str, Any]) -> str | None:
    """Rewrite an envelope's body if its text is JSON that Python cannot read. Returns what is wrong with it, or None."""
    headers, properties = data["headers"], data["properties"]
    if data.get("content-type") not in JSON:
        return f"its body is {data.get('content-type')!r:.80}, and only JSON is accepted"
    if headers.get("compression") is not None:  # kombu would unpack it, however large it becomes
        return "its body is compressed, and only plain JSON is accepted"
    try:
        text = _text_of(data)
    except ValueError:
        return "its body is not text in base64"
    readable = _readable(text, BELOW_A_BODY)
    if readable == text:
        return None
    data["body"], properties["body_encoding"] = readable, "utf-8"
    if pruned(text, BELOW_A_BODY) == text:
        return None
    # The task answers a request that is nested too deep. Nothing would report it in another part of the message.
    body = _body_of(CeleryEnvelope(data))
    if body is None or headers["task"] not in OURS or problem_of_value(body[2], BELOW_A_BODY - 2) is not None:
        return f"its body is {TOO_DEEP}"
    return None


def _text_of(data: dict[str, Any]) -> str:
    """The text of an envelope's body. Raises ValueError if it is not text."""
    body: str = data["body"]
    if data["properties"].get("body_encoding") != "base64":
        return body
    return base64.b64decode(body, validate=True).decode()


def _without_base64(text: str) -> str:
    """The text inside one layer of base64, or the text itself. A JSON object or array is never base64."""
    candidate = text.strip()
    if not candidate or candidate[0] in '{["':
        return text
    try:
        return base64.b64decode(candidate, validate=True).decode()
    except (binascii.Error, ValueError):
        return text


def valid_request_id(value: object) -> str | None:
    """The value if it can be a request id, else None."""
    try:
        return _REQUEST_ID.validate_python(value)
    except ValidationError:
        return None


def bare_request_id(request: dict[str, Any], message_id: str, queue: str, settings: Settings) -> str:
    """The id of a bare request's result: its own if a message of this queue may use it, else the queue's prefix and the id of
    the SQS message."""
    own = valid_request_id(request.get("requestId"))
    if own is not None and id_refusal(own, queue, settings) is None:
        return own
    return required_prefix(queue, settings) + message_id


def adopt(
    request: dict[str, Any], message_id: str, sent_at_ms: int | None, settings: Settings, *, queue: str = ""
) -> dict[str, Any]:
    """A bare request of a queue as the kombu envelope that a Celery producer would have sent.

    An invalid request is adopted too, with default limits: the task answers it with a stored result. `argsrepr`, which logs
    and Flower show, has neither payload nor environment: they may be secret.
    """
    request_id = bare_request_id(request, message_id, queue, settings)
    soft_s, hard_s = time_limits(_timeout_ms(request, request_id, settings), settings)
    headers: dict[str, Any] = {
        "lang": "py",
        "task": EXECUTE,
        "id": request_id,
        "root_id": request_id,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [hard_s, soft_s],
        "argsrepr": redacted(request),
        "kwargsrepr": "{}",
        "origin": BARE_ORIGIN,
        "ignore_result": False,
    }
    if sent_at_ms is not None:
        headers[SENT_AT] = sent_at_ms
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return {
        "body": json.dumps([[request], {}, embed]),
        "content-type": plain_json.CONTENT_TYPE,
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "correlation_id": request_id,
            "reply_to": "",
            "body_encoding": "utf-8",
            "priority": 0,
            "delivery_info": {},
        },
    }


def _timeout_ms(request: dict[str, Any], request_id: str, settings: Settings) -> int:
    try:
        return parse_named(request, settings, request_id).timeout_ms
    except (InvalidRequestError, RecursionError):
        return settings.timeout_ms


def is_ours(envelope: CeleryEnvelope) -> bool:
    """Whether a Celery message is for one of NanoGrid's tasks: then a producer waits for a result, whatever the message holds."""
    return envelope.headers["task"] in OURS


def request_of(envelope: CeleryEnvelope) -> dict[str, Any] | None:
    """The wire request inside a Celery message for one of NanoGrid's tasks, or None if none can be read."""
    body = _body_of(envelope)
    if body is None:
        return None
    objects = [
        argument for argument in body[0] if isinstance(argument, dict)
    ]  # an earlier part's result may come first
    request = objects[-1] if objects else None if body[0] else body[1]
    return request if isinstance(request, dict) else None


def context_of(envelope: CeleryEnvelope) -> dict[str, Any]:
    """What Celery knows of a message's place in a group or chord: its headers and the parts embedded in its body."""
    body = _body_of(envelope)
    embedded = body[2] if body is not None and isinstance(body[2], dict) else {}
    return {**envelope.headers, **embedded}


def problem_of(envelope: CeleryEnvelope, queue: str, settings: Settings) -> str | None:
    """Why a message of this queue must not reach Celery, or None. Covers the envelope and its content."""
    body = _body_of(envelope)
    if body is None:
        return envelope.problem or "its body cannot be read"
    payload = list(body)
    return envelope.problem or problem_of_parts(payload) or foreign_id(envelope.headers, payload, queue, settings)


def _body_of(envelope: CeleryEnvelope) -> tuple[list[Any], dict[str, Any], Any] | None:
    """Arguments, keyword arguments and embedded parts, or None if the body is not Celery's."""
    try:
        args, kwargs, embedded = json.loads(_text_of(envelope.payload))
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return (args, kwargs, embedded) if isinstance(args, list) and isinstance(kwargs, dict) else None
