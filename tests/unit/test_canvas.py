"""What of Celery's canvas cannot be made of requests is refused where it is asked for."""

from __future__ import annotations

from typing import Any

import celery
import pytest

from nanogrid.celery import app, make_app
from nanogrid.errors import InvalidRequestError
from nanogrid.tasks import execute_function, reduce_function

REQUEST: dict[str, Any] = {"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"}
REQUESTS = [{**REQUEST, "requestId": name} for name in ("a", "b")]


def refused(call: Any) -> str:
    """What the producer is told; it names both ways that work."""
    with pytest.raises(InvalidRequestError) as refusal:
        call()
    sentence = str(refusal.value)
    assert "Client.map_reduce" in sentence
    assert "group(" in sentence
    return sentence


@pytest.mark.parametrize("task", [execute_function, reduce_function])
@pytest.mark.parametrize("way", ["map", "starmap", "chunks"])
def test_many_requests_in_one_task_are_refused(task: Any, way: str) -> None:
    """`.map`, `.starmap` and `.chunks` would run requests one after the other, without an id of their own."""
    more = (2,) if way == "chunks" else ()
    assert way in refused(lambda: getattr(task, way)(REQUESTS, *more))


@pytest.mark.parametrize("kind", [celery.xmap, celery.xstarmap])
def test_the_signature_itself_is_refused_when_it_is_sent(kind: Any) -> None:
    """Likewise where they are made without the task's own methods."""
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
    """Requests travel as JSON; a message in another form would have no result."""
    with pytest.raises(InvalidRequestError, match=f"serializer: '{name}' is not accepted"):
        send(serializer=name)


def test_another_serializer_of_the_whole_app_is_refused() -> None:
    """Likewise where a deployment's configuration names it."""
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
    """It would run here, under an id made of nothing that all such calls share."""
    assert "without a request id" in refused(call)
