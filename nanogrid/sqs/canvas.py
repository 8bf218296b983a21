"""What follows a request: callbacks, the rest of a chain, the body of a chord. Reads them as data and sends nothing.

The rule: a part that receives the result before it has that as its payload, and no input of its own. The producer refuses
parts that can never be sent. Parts that are not sent later are listed here, so that they can be answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nanogrid.result import Outcome
from nanogrid.settings import Settings
from nanogrid.sqs.submission import Submission, refuse_own_input
from nanogrid.wire.names import EXECUTE, REDUCE

OURS = (EXECUTE, REDUCE)
STOPPING = frozenset({Outcome.CANCELLED, Outcome.NOT_RUN})
"""Outcomes after which the rest of a chain does not run: the function did not run, or somebody cancelled it."""


def parts_of(signatures: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Every task in Celery's signatures, at any depth, in order."""
    waiting = list(signatures)[::-1]
    while waiting:
        signature = waiting.pop()
        if not isinstance(signature, dict):
            continue
        options, inner = signature.get("options") or {}, list(_inner(signature))
        if not inner:
            yield signature
        after = [*inner, *_list(options.get("link")), *_list(options.get("chain"))]
        waiting += after[::-1]


def _inner(signature: dict[str, Any]) -> list[Any]:
    """The parts of a chain, group or chord; none for a task."""
    kwargs = signature.get("kwargs") or {}
    match signature.get("subtask_type"):
        case "chain" | "group":
            return _list(kwargs.get("tasks"))
        case "chord":
            return [*_list(kwargs.get("header")), kwargs.get("body")]
    return []


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def after(context: Any) -> list[dict[str, Any]]:
    """The parts that follow a request according to Celery's context of it, in order."""
    return [*_list(context.callbacks), *_list(context.chain)[::-1]]


def request_in(part: dict[str, Any]) -> dict[str, Any]:
    """The request that a part for one of NanoGrid's tasks is called with: its last object, or its keywords. May be invalid."""
    kwargs = part.get("kwargs") or {}
    objects = [argument for argument in _list(part.get("args")) if isinstance(argument, dict)]
    if part.get("task") == REDUCE:
        return objects[-1] if objects else _dict(kwargs.get("request"))
    return {**(objects[-1] if objects else {}), **kwargs}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def refuse_unusable(options: dict[str, Any], settings: Settings) -> None:
    """Check the parts that follow a call according to Celery's options. Raises InvalidRequestError for one that could not be sent."""
    for part in parts_of([*_list(options.get("link")), *_list(options.get("chain")), *_list(options.get("chord"))]):
        if part.get("task") not in OURS:
            continue
        request, own_options = request_in(part), part.get("options") or {}
        if part["task"] == EXECUTE and not part.get("immutable"):
            refuse_own_input(request)
        Submission.of(request, settings, task_id=own_options.get("task_id"))
