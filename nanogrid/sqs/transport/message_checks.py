"""Checks on the parts of a Celery message that control Celery: its headers, and the parts embedded in its body.

The rule: the task id alone says which request a message is for, and nothing else in the message may contradict it. Celery lets
any header and any embedded part replace what it knows of a request, and trusts their types, so both are checked first. These
functions do not raise, whatever a sender wrote: they return what is wrong, or None.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from celery.app.task import Context

from nanogrid.request import id_refusal
from nanogrid.settings import Settings
from nanogrid.sqs.transport.delays import LONGEST_WAIT_S, parse_time
from nanogrid.telemetry.tracing import CARRIED
from nanogrid.wire.names import EXECUTE, NOT_LOWERED, REDUCE, SENT_AT

MOST_RETRIES = 1_000_000
LARGEST_NUMBER = 10**15
SHORTEST_S = 0.001
"""Shortest time limit: to Celery, 0 means no limit."""

TEXTS = ("lang", "group", "shadow", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", *CARRIED)
SWITCHES = ("ignore_result", NOT_LOWERED)
STAMPS = ("stamped_headers", "stamps")
"""Celery copies these into the options of the next attempt, and they may hold a task id."""

CHECKED_HEADERS = (
    "id",
    "task",
    "retries",
    "eta",
    "expires",
    "timelimit",
    "group_index",
    "replaced_task_nesting",
    SENT_AT,
)
ACCEPTED_HEADERS = {*CHECKED_HEADERS, *TEXTS, *SWITCHES, *STAMPS}
REPLACING = frozenset(dir(Context)) - ACCEPTED_HEADERS
"""Attributes of a request in Celery that a header of the same name would replace."""

EMBEDDED = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}
"""The parts that a canvas embeds in a message, and their types."""

ID_KEYS = ("task_id", "requestId")
DATA_KEYS = ("payload", "env")
"""What a function receives is data, so ids in it do not count."""


def problem_of_headers(headers: dict[str, Any]) -> str | None:
    """What is wrong with a Celery message's headers other than `id` and `task`, or None."""
    for name, value in headers.items():
        if value is not None and (problem := _problem(name, value)) is not None:
            return f"the Celery message's header {name} {problem}"
    return None


def problem_of_properties(properties: dict[str, Any]) -> str | None:
    """What is wrong with the properties that kombu adds to the headers, or None."""
    for name in ("reply_to", "correlation_id"):
        if not isinstance(properties.get(name, ""), (str, type(None))):
            return f"the Celery message's property {name} is not a string"
    priority = properties.get("priority")
    if priority is not None and not _is_whole(priority, LARGEST_NUMBER):
        return "the Celery message's property priority is not a whole number from 0"
    return None


def problem_of_parts(payload: object) -> str | None:
    """What is wrong with a decoded body, or None. A body is `[args, kwargs, embedded]`; a canvas needs the embedded parts."""
    if not isinstance(payload, list) or len(payload) != 3:
        return "its body is not [args, kwargs, embedded]"
    args, kwargs, embedded = payload
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embedded, (dict, type(None))):
        return "its body is not [args, kwargs, embedded]"
    for name, part in (embedded or {}).items():
        if name not in EMBEDDED:
            return f"its embedded part {name!r} is not one of {', '.join(EMBEDDED)}"
        members = part if isinstance(part, list) else []
        if part is not None and not (
            isinstance(part, EMBEDDED[name]) and all(isinstance(each, dict) for each in members)
        ):
            return f"its embedded part {name!r} has a wrong type"
    return None


def foreign_id(headers: dict[str, Any], payload: list[Any], queue: str, settings: Settings) -> str | None:
    """Why a message may not come from this queue, or None: it names an id that belongs to another queue.

    `payload` must have no problem. Checked are the message's own id, the ids under which Celery would send, store or fail
    something on its behalf, and the ids of results that it reads. If ids belong to queues, Celery's own tasks are refused: they
    send whatever their arguments say.
    """
    if not settings.request_id_prefixes:
        return None
    if headers["task"] not in (EXECUTE, REDUCE):
        return f"request ids belong to queues in this deployment, so only requests are accepted, not {headers['task']}"
    args, kwargs, embedded = payload
    named = [headers["id"], *_named_in(embedded)]
    if headers["task"] == REDUCE:
        parts = kwargs.get("parts", args[1] if len(args) > 1 else [])
        named += parts if isinstance(parts, list) else [parts]
    for each in named:
        if not isinstance(each, str):
            return f"it names an id that is not a string: {each!r:.80}"
        if (problem := id_refusal(each, queue, settings)) is not None:
            return problem
    return None


def _named_in(data: object) -> Iterator[object]:
    """Every id in embedded parts, at any depth."""
    waiting = [data]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            yield from (each[name] for name in ID_KEYS if each.get(name) is not None)
            waiting += [value for name, value in each.items() if name not in DATA_KEYS]


def _problem(name: str, value: object) -> str | None:
    if name in REPLACING:
        return "is not one that a message may have"
    if name in TEXTS:
        return None if isinstance(value, str) else "is not a string"
    if name in SWITCHES:
        return None if isinstance(value, bool) else "is neither true nor false"
    if name in STAMPS:
        return "holds stamps, which NanoGrid does not accept" if value else None
    match name:
        case "retries":
            return None if _is_whole(value, MOST_RETRIES) else f"is not a whole number from 0 to {MOST_RETRIES}"
        case "group_index" | "replaced_task_nesting":
            return None if _is_whole(value, LARGEST_NUMBER) else "is not a whole number from 0"
        case "timelimit":
            return None if _are_limits(value) else "is not a pair of seconds"
        case "eta" | "expires":
            return _problem_of_time(value, latest_s=LONGEST_WAIT_S if name == "eta" else None)
        case _ if name == SENT_AT:
            return None if _is_number(value, 0) else "is not a time in milliseconds"
    return None


def _problem_of_time(value: object, *, latest_s: float | None) -> str | None:
    """`latest_s`: how far in the future the time may be, in seconds; None: any time."""
    if not isinstance(value, str):
        return "is not a time"
    try:
        seconds = parse_time(value)
    except (ValueError, OverflowError, OSError, TypeError, AttributeError):
        return "is not a time"
    if latest_s is not None and seconds > time.time() + latest_s:
        return f"is further ahead than the {latest_s / 3600:g} hours that a request may wait"
    return None


def _are_limits(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(each is None or _is_number(each, SHORTEST_S) for each in value)


def _is_whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def _is_number(value: object, least: float) -> bool:
    """Whether a value is a number in bounds. NaN is not: every comparison with it is false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= LARGEST_NUMBER
