"""A checked request as a Celery message: id, queue, limits, and what logs show of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import celery
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.celery import app
from nanogrid.client import Client
from nanogrid.errors import ConfigurationError, InvalidRequestError
from nanogrid.settings import Settings
from nanogrid.sqs.submission import Submission, merge_fields, redacted
from nanogrid.tasks import execute_function
from nanogrid.wire.names import EXECUTE, SENT_AT

REQUEST: dict[str, Any] = {
    "requestId": "r-1",
    "functionId": "f",
    "runtime": "c++",
    "s3Bucket": "code",
    "s3Key": "f.zip",
    "timeoutMs": 1000,
}


def test_everything_about_the_call_follows_from_the_request() -> None:
    """Task id, queue and time limits come from the request."""
    settings = Settings(overhead_s=100, hard_limit_grace_s=10)
    options = Submission.of(REQUEST, settings).options()
    assert (options["task_id"], options["queue"]) == ("r-1", "cpp")
    assert (options["soft_time_limit"], options["time_limit"]) == (101, 111)


def test_an_id_is_made_where_there_is_none() -> None:
    """The producer creates the request id; the task id is the same."""
    anonymous = {key: value for key, value in REQUEST.items() if key != "requestId"}
    first, second = (Submission.of(anonymous, Settings()) for _ in range(2))
    assert first.task_id == first.request.request_id
    assert first.task_id != second.task_id


def test_a_retry_keeps_its_id_and_its_age() -> None:
    """Values that Celery has chosen are kept: the id, and the time at which the request was first sent."""
    submission = Submission.of(REQUEST, Settings(), task_id="r-1")
    options = submission.options({"headers": {SENT_AT: 42}, "countdown": 3, "retries": 1, "routing_key": "x"})
    assert (options["task_id"], options["headers"][SENT_AT]) == ("r-1", 42)
    assert (options["countdown"], options["retries"]) == (3, 1)
    assert "routing_key" not in options


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (({"a": 1},), {}),
        ((), {"a": 1}),
        (({"a": 0},), {"a": 1}),
    ],
)
def test_one_request_comes_in_either_form(args: Any, kwargs: Any) -> None:
    """`delay({...})`, `delay(a=...)` and both at once mean one request; keywords override the object."""
    assert merge_fields(args, kwargs) == {"a": 1}


@pytest.mark.parametrize("args", [("text",), ({}, {}, {}), ({}, "text"), ([1],)])
def test_other_forms_are_refused(args: Any) -> None:
    """Anything but one request object is refused before anything is sent."""
    with pytest.raises(InvalidRequestError, match="one request object"):
        merge_fields(args, {})


@given(
    wire=st.dictionaries(
        st.sampled_from([*REQUEST, "memoryMb", "handler", "env"]),
        st.text() | st.integers() | st.floats() | st.lists(st.integers()),
    ),
    secret=st.from_regex(r"\Asecret[a-z]{8}\Z"),
)
def test_what_is_shown_of_a_request_is_short_and_holds_no_secret(wire: dict[str, Any], secret: str) -> None:
    """Whatever a sender wrote, the line is short and has neither payload nor environment."""
    shown = redacted({**wire, "payload": secret, "env": {"TOKEN": secret}})
    assert secret not in shown
    assert len(shown) < 4000


EAGER = [
    pytest.param(lambda: execute_function.delay(REQUEST), id="delay"),
    pytest.param(lambda: execute_function.apply_async((REQUEST,)), id="apply_async"),
    pytest.param(lambda: execute_function.s(REQUEST).delay(), id="signature"),
    pytest.param(
        lambda: celery.chain(execute_function.s(REQUEST), execute_function.s(REQUEST)).apply_async(), id="chain"
    ),
    pytest.param(lambda: app.send_task(EXECUTE, (REQUEST,)), id="send_task"),
    pytest.param(lambda: Client().submit(REQUEST), id="client"),
    pytest.param(lambda: Client().map_reduce(REQUEST, [1, 2], REQUEST), id="map_reduce"),
]


@pytest.mark.parametrize("call", EAGER)
def test_eager_tasks_are_refused(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function runs in a container, never in the producer's process; a user's tests do not send anything either."""
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    with pytest.raises(ConfigurationError, match="task_always_eager would run a function in this process"):
        call()


def test_running_a_task_here_is_refused() -> None:
    """The same for names that are given explicitly."""
    for call in (execute_function.apply, execute_function.s(REQUEST).apply):
        with pytest.raises(ConfigurationError, match="apply would run a function in this process"):
            call((REQUEST,))


def test_what_the_documents_say_about_tests_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example from the document."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "celery.md").read_text()
    (example,) = re.findall(r"```python\n(def test_.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"execute_function": execute_function, "my_code": lambda: execute_function.delay(**REQUEST)}
    exec(example, names)  # our own document
    names["test_my_code"](monkeypatch)
