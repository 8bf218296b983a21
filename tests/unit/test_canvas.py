"""Canvas constructions that requests do not support are refused when they are created."""

from __future__ import annotations

import json
from typing import Any

import celery
import pytest

from nanogrid.celery import app, make_app
from nanogrid.errors import EarlierPartError, InvalidRequestError
from nanogrid.result import ExecutionResult, Outcome, not_run
from nanogrid.sqs.canvas import refuse_unusable
from nanogrid.sqs.submission import merge_fields
from nanogrid.tasks import execute_function, reduce_function

REQUEST: dict[str, Any] = {"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"}
REQUESTS = [{**REQUEST, "requestId": name} for name in ("a", "b")]


def refused(call: Any) -> str:
    """The error names both alternatives that work."""
    with pytest.raises(InvalidRequestError) as refusal:
        call()
    sentence = str(refusal.value)
    assert "Client.map_reduce" in sentence
    assert "group(" in sentence
    return sentence


@pytest.mark.parametrize("task", [execute_function, reduce_function])
@pytest.mark.parametrize("way", ["map", "starmap", "chunks"])
def test_many_requests_in_one_task_are_refused(task: Any, way: str) -> None:
    """`.map`, `.starmap` and `.chunks` would run requests one after the other, under one id."""
    more = (2,) if way == "chunks" else ()
    assert way in refused(lambda: getattr(task, way)(REQUESTS, *more))


@pytest.mark.parametrize("kind", [celery.xmap, celery.xstarmap])
def test_the_signature_itself_is_refused_when_it_is_sent(kind: Any) -> None:
    """The same if they are created without the task's own methods."""
    signature = kind(execute_function.s(), REQUESTS, app=app)
    refused(signature.apply_async)
    refused(signature.delay)


def test_chunks_are_refused_when_they_are_sent() -> None:
    chunks = celery.chunks(execute_function.s(), REQUESTS, 2, app=app)
    refused(chunks)
    refused(chunks.apply_async)
    refused(lambda: celery.group(chunks.group(), app=app).apply_async())


@pytest.mark.parametrize("name", ["pickle", "yaml", "msgpack", "nonsense"])
@pytest.mark.parametrize(
    "send",
    [
        lambda **how: execute_function.apply_async((REQUEST,), **how),
        lambda **how: execute_function.s(REQUEST).set(**how).delay(),
        lambda **how: app.send_task(execute_function.name, (REQUEST,), **how),
        lambda **how: app.send_task(reduce_function.name, (REQUEST, ["a"], "fail"), **how),
    ],
)
def test_a_request_that_no_worker_would_read_is_refused(send: Any, name: str) -> None:
    """Requests are sent as JSON; a message in another format would have no result."""
    with pytest.raises(InvalidRequestError, match=f"serializer: '{name}' is not accepted"):
        send(serializer=name)


@pytest.mark.parametrize("task", [execute_function.name, reduce_function.name])
def test_a_compressed_request_is_refused(task: str) -> None:
    """A small message could become a large one in the worker's main process, so workers do not decompress."""
    with pytest.raises(InvalidRequestError, match="compression: 'zlib' is not accepted"):
        app.send_task(task, (REQUEST,), compression="zlib")
    own = make_app()
    own.conf.task_compression = "gzip"
    with pytest.raises(InvalidRequestError, match="compression: 'gzip' is not accepted"):
        own.send_task(task, (REQUEST,))


def test_another_serializer_of_the_whole_app_is_refused() -> None:
    """The same if a deployment's configuration sets it."""
    own = make_app()
    own.conf.task_serializer = "pickle"
    with pytest.raises(InvalidRequestError, match="serializer: 'pickle' is not accepted"):
        own.send_task(execute_function.name, (REQUEST,))


@pytest.mark.parametrize("name", ["celery.map", "celery.starmap", "celery.chunks"])
def test_sending_by_name_is_refused(name: str) -> None:
    refused(lambda: app.send_task(name, kwargs={"task": dict(execute_function.s()), "it": REQUESTS}))


@pytest.mark.parametrize(
    "call",
    [
        lambda: execute_function(REQUEST),
        lambda: execute_function(**REQUEST),
        lambda: execute_function({**REQUEST, "requestId": "a"}),
        lambda: execute_function.run(REQUEST),
        lambda: execute_function.s(REQUEST)(),
        lambda: reduce_function(REQUEST, ["a", "b"], "fail"),
    ],
)
def test_a_direct_call_is_refused(call: Any) -> None:
    """The call would run in this process, with an id that all such calls share."""
    assert "without a request id" in refused(call)


# -- what comes after a request ---------------------------------------------------------------------------------------


def ended(outcome: Outcome, request_id: str = "first") -> ExecutionResult:
    """A result."""
    result = not_run(request_id, "f", "reason", outcome=outcome)
    return result.model_copy(update={"success": outcome is Outcome.SUCCEEDED, "value": 7})


@pytest.mark.parametrize("before", [ended(Outcome.SUCCEEDED), ended(Outcome.SUCCEEDED).to_wire()])
def test_what_ran_before_is_the_payload(before: Any) -> None:
    """As a task in this process returns it, and as it arrives in a message."""
    assert merge_fields((before, REQUEST), {}) == {**REQUEST, "payload": ended(Outcome.SUCCEEDED).to_wire()}


@pytest.mark.parametrize("value", [5, "text", None, [1, 2], {"requestId": "no result"}])
def test_so_is_what_a_task_of_somebodys_own_returned(value: Any) -> None:
    assert merge_fields((value, REQUEST), {})["payload"] == value


def test_the_body_of_a_chord_gets_all_results() -> None:
    parts = [ended(Outcome.SUCCEEDED, name) for name in ("a", "b")]
    assert [each["requestId"] for each in merge_fields((parts, REQUEST), {})["payload"]] == ["a", "b"]


def test_nothing_runs_on_the_result_of_what_did_not_succeed() -> None:
    """Neither after one failed request, nor after many of which one failed."""
    parts = [ended(Outcome.SUCCEEDED, "a"), ended(Outcome.FAILED, "b")]
    for before in (ended(Outcome.FAILED, "b"), parts):
        with pytest.raises(EarlierPartError, match="did not succeed: b FAILED"):
            merge_fields((before, REQUEST), {})


def test_a_payload_of_its_own_is_not_replaced_in_silence() -> None:
    with pytest.raises(InvalidRequestError, match=r"payload: .* use \.si\(\.\.\.\)"):
        merge_fields((5, {**REQUEST, "payload": 1}), {})
    with pytest.raises(InvalidRequestError, match=r"stdin: .* use \.si\(\.\.\.\)"):
        merge_fields((5, {**REQUEST, "stdin": "text"}), {})


WITH_PAYLOAD = {**REQUEST, "payload": 1}
UNUSABLE = {"functionId": "f", "runtime": "ruby"}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: celery.chain(s(WITH_PAYLOAD), s(WITH_PAYLOAD)).apply_async(), "use .si(...)"),
        (lambda s: celery.chain(s(REQUEST), s(**WITH_PAYLOAD)).apply_async(), "use .si(...)"),
        (lambda s: s(REQUEST).apply_async(link=s(WITH_PAYLOAD)), "use .si(...)"),
        (lambda s: celery.chain(s(REQUEST), s({**REQUEST, "stdinBase64": "YQ=="})).apply_async(), "use .si(...)"),
        (lambda s: execute_function.apply_async((REQUEST,), link=[s(REQUEST), s(WITH_PAYLOAD)]), "use .si(...)"),
        (lambda s: celery.chain(s(REQUEST), s(REQUEST), s(UNUSABLE)).apply_async(), "runtime"),
        (lambda s: s(REQUEST).apply_async(link=celery.chain(s(REQUEST), s(UNUSABLE))), "runtime"),
    ],
)
def test_what_could_not_be_sent_later_is_refused_before_anything_is_sent(call: Any, sentence: str) -> None:
    """Nothing listens here: an attempt to send would raise another error."""
    with pytest.raises(InvalidRequestError) as refusal:
        call(execute_function.s)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("wrong", [execute_function.s(UNUSABLE), execute_function.s(WITH_PAYLOAD)])
def test_so_is_what_stands_deeper(wrong: Any) -> None:
    """In a group, in the header and body of a chord, in a callback of a callback; as signatures and as plain objects."""
    fine = execute_function.s(REQUEST)
    wholes = [
        celery.group(fine, wrong),
        celery.chord([fine, wrong], fine),
        celery.chord([fine], celery.chain(fine, wrong)),
        execute_function.s(REQUEST).set(link=[execute_function.si(WITH_PAYLOAD).set(link=wrong)]),
    ]
    for options in (
        *({"chain": [fine, whole]} for whole in wholes[:3]),
        {"chord": wrong},
        {"link": wholes[3]},
        json.loads(json.dumps({"link": wholes[1]})),
    ):
        with pytest.raises(InvalidRequestError):
            refuse_unusable(options, app.settings)


def test_what_may_come_after_is_not_refused() -> None:
    """Immutable ones have a payload; mutable ones receive one."""
    later = [execute_function.si(WITH_PAYLOAD), execute_function.s(REQUEST), execute_function.s(**REQUEST)]
    refuse_unusable({"link": later, "chain": later, "chord": later[1]}, app.settings)
