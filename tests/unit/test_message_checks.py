"""Checks of Celery messages: headers and embedded parts that control Celery, and the ids that a message may name."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nanogrid.errors import InvalidRequestError
from nanogrid.request import id_refusal, new_request_id
from nanogrid.settings import Settings
from nanogrid.sqs.submission import Submission
from nanogrid.sqs.transport.envelopes import BareRequest, CeleryEnvelope, Garbage, adopt, read_body
from nanogrid.sqs.transport.message_checks import foreign_id, problem_of_parts
from nanogrid.wire.names import EXECUTE, REDUCE, SENT_AT

REQUEST = {"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"}
PREFIXES = Settings(request_id_prefixes={"python": "a-", "cpp": "b-"})


def in_hours(hours: float) -> str:
    """A time relative to now, as Celery writes it."""
    return (datetime.now(timezone.utc) + timedelta(hours=hours)).isoformat()


def read(properties: dict[str, Any] | None = None, **headers: Any) -> CeleryEnvelope | BareRequest | Garbage:
    """A Celery message with these headers, as read from a queue."""
    message = adopt(REQUEST, "m-1", 1, Settings())
    message["headers"].update(headers)
    message["properties"].update(properties or {})
    return read_body(json.dumps(message))


GOOD: list[dict[str, Any]] = [
    {},
    {"retries": 0},
    {"retries": None},
    {"retries": 4, "eta": in_hours(1), "group_index": 3, "group": "g", "ignore_result": None},
    {"eta": None, "expires": in_hours(-5), "timelimit": [135, None], "shadow": None},
    {"expires": in_hours(24 * 365), "timelimit": [1, 0.5], "stamped_headers": None, "stamps": {}},
    {"replaced_task_nesting": 0, "traceparent": "00-1-2-01", "x-own": {"any": ["thing"]}},
]

WRONG: list[tuple[str, Any]] = [
    ("retries", -1),
    ("retries", True),
    ("retries", 1.5),
    ("retries", "3"),
    ("retries", [1]),
    ("retries", 10**30),
    ("eta", 5),
    ("eta", ""),
    ("eta", "soon"),
    ("eta", "0001-01-01T00:00:00+23:59"),
    ("eta", in_hours(13)),
    ("eta", {"__type__": "datetime"}),
    ("expires", 5),
    ("expires", "never"),
    ("expires", "9999-12-31T23:59:59-23:59"),
    ("timelimit", [0, None]),
    ("timelimit", [-1, None]),
    ("timelimit", [None, float("nan")]),
    ("timelimit", [float("inf"), 1]),
    ("timelimit", [10**400, 1]),
    ("timelimit", [True, 1]),
    ("timelimit", [1, 2, 3]),
    ("group", ["g"]),
    ("root_id", 5),
    ("parent_id", {}),
    ("shadow", ["s"]),
    ("argsrepr", 5),
    ("kwargsrepr", []),
    ("origin", 5),
    ("group_index", "1"),
    ("group_index", float("nan")),
    ("replaced_task_nesting", "1"),
    ("ignore_result", "no"),
    ("stamped_headers", ["task_id"]),
    ("stamps", {"task_id": "another"}),
    (SENT_AT, "yesterday"),
    (SENT_AT, float("nan")),
    (SENT_AT, -1),
    ("nanogrid_not_lowered", "x"),
    ("traceparent", [1]),
    ("chord", {"task": EXECUTE}),
    ("callbacks", []),
    ("args", []),
    ("called_directly", True),
    ("_children", []),
    ("update", "x"),
    ("delivery_info", {}),
]


@pytest.mark.parametrize("headers", GOOD)
def test_what_celery_itself_sends_is_taken(headers: dict[str, Any]) -> None:
    """Messages of producers, retries and canvases have no problem; headers that Celery does not use are ignored."""
    found = read(**headers)
    assert isinstance(found, CeleryEnvelope)
    assert found.problem is None
    assert found.headers.get("retries", 0) is not None


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name} {number}" for number, (name, _) in enumerate(WRONG)])
def test_a_header_that_controls_celery_is_checked(name: str, value: Any) -> None:
    """The error names a header with a wrong type or value, and the message is not run."""
    found = read(**{name: value})
    assert isinstance(found, CeleryEnvelope)
    assert found.problem is not None
    assert f"header {name}" in found.problem


@pytest.mark.parametrize(
    ("name", "value"), [("priority", "high"), ("priority", True), ("reply_to", 5), ("correlation_id", [])]
)
def test_a_property_that_controls_celery_is_checked(name: str, value: Any) -> None:
    """Properties that kombu adds to the headers."""
    found = read({name: value})
    assert isinstance(found, CeleryEnvelope)
    assert found.problem is not None
    assert f"property {name}" in found.problem


@pytest.mark.parametrize("request_id", ["", "a b", "a\nb", "x" * 201, "-x", "é", "../x"])
def test_a_task_id_that_is_no_request_id_makes_garbage(request_id: str) -> None:
    """The task id names result, claim and log: it must be a valid request id."""
    found = read(id=request_id)
    assert isinstance(found, Garbage)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted({name for name, _ in WRONG})), json_values, max_size=4))
def test_no_header_makes_reading_raise(headers: dict[str, Any]) -> None:
    """Whatever the headers contain, reading them reports it and does not raise."""
    assert isinstance(read(**headers), (CeleryEnvelope, Garbage))


@pytest.mark.parametrize(
    "payload",
    [
        None,
        5,
        {},
        {"args": [REQUEST], "kwargs": {}, "retries": -5},
        [[REQUEST], {}],
        ["args", {}, {}],
        [[REQUEST], [], {}],
        [[REQUEST], {}, []],
        [[REQUEST], {}, {"id": "another"}],
        [[REQUEST], {}, {"retries": -5}],
        [[REQUEST], {}, {"delivery_info": {}}],
        [[REQUEST], {}, {"callbacks": 5}],
        [[REQUEST], {}, {"chain": ["x"]}],
        [[REQUEST], {}, {"chord": ["x"]}],
    ],
)
def test_parts_that_would_speak_over_the_headers_are_refused(payload: Any) -> None:
    """Celery lets embedded parts and older message formats replace the id, the retries and everything else of a request."""
    assert problem_of_parts(payload) is not None


@pytest.mark.parametrize(
    "embedded",
    [None, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}, {"callbacks": [{"task": EXECUTE}]}],
)
def test_parts_of_a_canvas_are_taken(embedded: Any) -> None:
    """Chains, chords and links are Celery's own, and work."""
    assert problem_of_parts([[REQUEST], {}, embedded]) is None


@pytest.mark.parametrize(
    ("request_id", "queue", "problem"),
    [
        ("a-1", "python", None),
        ("b-1", "python", "'b-1' does not begin with 'a-', which the queue python requires"),
        ("1", "python", "'1' does not begin with 'a-', which the queue python requires"),
        ("b-1", "cpp", None),
        ("1", "other", None),
        ("a-1", "other", "'a-1' begins with 'a-', and such ids belong to another queue than other"),
    ],
)
def test_each_id_belongs_to_the_queue_of_its_prefix(request_id: str, queue: str, problem: str | None) -> None:
    """In a queue with a prefix all ids have it; in a queue without one, ids have no other queue's prefix."""
    assert id_refusal(request_id, queue, PREFIXES) == problem
    assert id_refusal(request_id, queue, Settings()) is None


@pytest.mark.parametrize(
    ("args", "kwargs", "embedded", "task", "named"),
    [
        ([REQUEST], {}, {}, EXECUTE, None),
        ([{**REQUEST, "payload": {"task_id": "b-1", "requestId": "b-1"}}], {}, {}, EXECUTE, None),
        ([REQUEST], {}, {"callbacks": [{"options": {"task_id": "b-1"}}]}, EXECUTE, "b-1"),
        ([REQUEST], {}, {"callbacks": [{"options": {"task_id": {"__type__": "uuid"}}}]}, EXECUTE, "uuid"),
        ([REQUEST], {}, {"chord": {"kwargs": {"body": {"args": [{"requestId": "b-2"}]}}}}, EXECUTE, "b-2"),
        ([REQUEST], {}, {"chain": [{"kwargs": {"requestId": "a-2", "payload": {"requestId": "b"}}}]}, EXECUTE, None),
        ([REQUEST, ["a-1", "b-3"], "fail"], {}, {}, REDUCE, "b-3"),
        ([], {"request": REQUEST, "parts": ["b-4"], "on_failure": "fail"}, {}, REDUCE, "b-4"),
        ([REQUEST, "b-5", "fail"], {}, {}, REDUCE, "b"),
        ([], {}, {}, "celery.chord", "celery.chord"),
    ],
)
def test_every_id_that_a_message_names_is_looked_at(
    args: Any, kwargs: Any, embedded: Any, task: str, named: str | None
) -> None:
    """An id of another queue under which Celery would send, store or read something is found at any depth."""
    problem = foreign_id({"id": "a-0", "task": task}, [args, kwargs, embedded], "python", PREFIXES)
    assert problem is None if named is None else named in str(problem)
    assert foreign_id({"id": "a-0", "task": task}, [args, kwargs, embedded], "python", Settings()) is None


def test_a_bare_request_has_an_id_of_its_queue() -> None:
    """Its own id if the queue allows it, else the SQS message's id after the prefix."""
    for request_id, expected in (("a-1", "a-1"), ("b-1", "a-m-1"), (None, "a-m-1"), ("a b", "a-m-1")):
        message = adopt({**REQUEST, "requestId": request_id}, "m-1", 1, PREFIXES, queue="python")
        assert message["headers"]["id"] == expected
        assert json.loads(message["body"])[0] == [{**REQUEST, "requestId": request_id}]


def test_a_producer_hears_of_a_wrong_id_before_anything_is_sent() -> None:
    """The producer learns of a missing prefix, and of two ids for one request."""
    with pytest.raises(InvalidRequestError, match="requestId: 'r-1' does not begin with 'a-'"):
        Submission.of({**REQUEST, "requestId": "r-1"}, PREFIXES)
    with pytest.raises(InvalidRequestError, match="requestId: 'r-1' is not the id of its message, 'r-2'"):
        Submission.of({**REQUEST, "requestId": "r-1"}, Settings(), task_id="r-2")
    assert Submission.of({**REQUEST, "requestId": "a-1"}, PREFIXES).task_id == "a-1"
    assert Submission.of({**REQUEST, "runtime": "cpp"}, PREFIXES).task_id.startswith("b-")
    assert new_request_id({"runtime": "C++"}, PREFIXES).startswith("b-")
    assert new_request_id({"runtime": 5}, PREFIXES)


@pytest.mark.parametrize(
    ("prefixes", "problem"),
    [
        ({"python": "a", "cpp": "ab"}, "'ab' begins with 'a'"),
        ({"python": ""}, "is not a prefix of request ids"),
        ({"python": "a b"}, "is not a prefix of request ids"),
        ({"python": "x" * 101}, "is not a prefix of request ids"),
        ({"pyhton": "a-"}, "'pyhton' is not the queue of a runtime"),
    ],
)
def test_prefixes_that_would_protect_nothing_are_refused(prefixes: dict[str, str], problem: str) -> None:
    """A prefix of another prefix, a prefix that no id can start with, or an unknown queue is an error at start."""
    with pytest.raises(ValidationError, match=problem):
        Settings(request_id_prefixes=prefixes)


def test_two_queues_of_one_producer_share_a_prefix() -> None:
    """Two queues may have the same prefix."""
    settings = Settings(request_id_prefixes={"python": "a-", "cpp": "a-"})
    assert id_refusal("a-1", "cpp", settings) is None
