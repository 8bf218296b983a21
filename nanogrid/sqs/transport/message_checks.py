"""What stands in a Celery message beside the request and steers Celery: its headers, and the parts that are embedded in its body.

The one rule: a message says once whose it is, by its task id, and nothing else in it may say otherwise. Celery lets any header
and any embedded part replace what it knows of a request, and believes their types: here they are looked at first. These
functions raise for nothing that a sender wrote; they return what is wrong, or None.
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
"""Of a time limit: Celery takes none at all for 0."""

TEXTS = ("lang", "group", "shadow", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", *CARRIED)
SWITCHES = ("ignore_result", NOT_LOWERED)
STAMPS = ("stamped_headers", "stamps")
"""Celery makes options of the next attempt out of these, the task id among them."""

CHECKED = ("id", "task", "retries", "eta", "expires", "timelimit", "group_index", "replaced_task_nesting", SENT_AT)
TAKEN = {*CHECKED, *TEXTS, *SWITCHES, *STAMPS}
REPLACING = frozenset(dir(Context)) - TAKEN
"""Names of what Celery keeps of a request, that a header of the same name would replace."""

EMBEDDED = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}
"""The parts that a canvas embeds, and their types."""

NAMES_AN_ID = ("task_id", "requestId")
DATA = ("payload", "env")
"""What a function gets is nobody's instruction."""


def problem_of_headers(headers: dict[str, Any]) -> str | None:
    """What is wrong with a Celery message's headers, beside `id` and `task`."""
    for name, value in headers.items():
        if value is not None and (problem := _problem(name, value)) is not None:
            return f"the Celery message's header {name} {problem}"
    return None


def problem_of_properties(properties: dict[str, Any]) -> str | None:
    """Likewise what kombu puts beside the headers."""
    for name in ("reply_to", "correlation_id"):
        if not isinstance(properties.get(name, ""), (str, type(None))):
            return f"the Celery message's property {name} is no text"
    priority = properties.get("priority")
    if priority is not None and not _is_whole(priority, LARGEST_NUMBER):
        return "the Celery message's property priority is no whole number from 0"
    return None


def problem_of_parts(payload: object) -> str | None:
    """What is wrong with a decoded body: it is `[args, kwargs, embedded]`, and embedded is what a canvas needs."""
    if not isinstance(payload, list) or len(payload) != 3:
        return "its body is not [args, kwargs, embedded]"
    args, kwargs, embedded = payload
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embedded, (dict, type(None))):
        return "its body is not [args, kwargs, embedded]"
    for name, part in (embedded or {}).items():
        if name not in EMBEDDED:
            return f"its embedded part {name!r} is none of {', '.join(EMBEDDED)}"
        members = part if isinstance(part, list) else []
        if part is not None and not (
            isinstance(part, EMBEDDED[name]) and all(isinstance(each, dict) for each in members)
        ):
            return f"its embedded part {name!r} has a wrong type"
    return None


def foreign_id(headers: dict[str, Any], payload: list[Any], queue: str, settings: Settings) -> str | None:
    """Why a message may not come from this queue: it names an id that is another queue's. `payload` has no problem.

    Looked at are its own id, those under which Celery would send, store or fail something on its behalf, and those of
    results that it wants to read. Where ids belong to queues, no task of Celery's own is taken: they send on what they are told.
    """
    if not settings.request_id_prefixes:
        return None
    if headers["task"] not in (EXECUTE, REDUCE):
        return f"where request ids belong to queues, only requests are taken, not {headers['task']}"
    args, kwargs, embedded = payload
    named = [headers["id"], *_named_in(embedded)]
    if headers["task"] == REDUCE:
        parts = kwargs.get("parts", args[1] if len(args) > 1 else [])
        named += parts if isinstance(parts, list) else [parts]
    for each in named:
        if not isinstance(each, str):
            return f"it names an id that is no text: {each!r:.80}"
        if (problem := id_refusal(each, queue, settings)) is not None:
            return problem
    return None


def _named_in(data: object) -> Iterator[object]:
    """Every id that stands in embedded parts, at any depth."""
    waiting = [data]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            yield from (each[name] for name in NAMES_AN_ID if each.get(name) is not None)
            waiting += [value for name, value in each.items() if name not in DATA]


def _problem(name: str, value: object) -> str | None:
    if name in REPLACING:
        return "is none that a message may have"
    if name in TEXTS:
        return None if isinstance(value, str) else "is no text"
    if name in SWITCHES:
        return None if isinstance(value, bool) else "is neither true nor false"
    if name in STAMPS:
        return "holds stamps, which NanoGrid does not take" if value else None
    match name:
        case "retries":
            return None if _is_whole(value, MOST_RETRIES) else f"is no whole number from 0 to {MOST_RETRIES}"
        case "group_index" | "replaced_task_nesting":
            return None if _is_whole(value, LARGEST_NUMBER) else "is no whole number from 0"
        case "timelimit":
            return None if _are_limits(value) else "is no pair of seconds"
        case "eta" | "expires":
            return _problem_of_time(value, latest_s=LONGEST_WAIT_S if name == "eta" else None)
        case _ if name == SENT_AT:
            return None if _is_number(value, 0) else "is no time in milliseconds"
    return None


def _problem_of_time(value: object, *, latest_s: float | None) -> str | None:
    """`latest_s`: how far ahead it may be, in seconds."""
    if not isinstance(value, str):
        return "is no time"
    try:
        seconds = parse_time(value)
    except (ValueError, OverflowError, OSError, TypeError, AttributeError):
        return "is no time"
    if latest_s is not None and seconds > time.time() + latest_s:
        return f"is more than the {latest_s / 3600:g} hours ahead for which a request may wait"
    return None


def _are_limits(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(each is None or _is_number(each, SHORTEST_S) for each in value)


def _is_whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def _is_number(value: object, least: float) -> bool:
    """NaN is none: every comparison with it is false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= LARGEST_NUMBER
