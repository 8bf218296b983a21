"""Requests: what is accepted, what is refused, and the error messages."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.errors import InvalidRequestError
from nanogrid.request import FIELDS, FunctionRequest, parse_request, time_limits
from nanogrid.settings import Settings, current
from nanogrid.sqs.submission import Submission

ORIGINAL: dict[str, Any] = {
    "requestId": "req-1",
    "functionId": "thumb",
    "runtime": "python",
    "s3Bucket": "code",
    "s3Key": "thumb.zip",
    "timeoutMs": 2000,
}


def nested(levels: int) -> Any:
    """Nested arrays."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture
def settings() -> Settings:
    return Settings()


def test_the_original_message_is_accepted(settings: Settings) -> None:
    """The six required fields are a whole request; the other fields get the deployment's defaults."""
    request = parse_request(ORIGINAL, settings)
    assert (request.request_id, request.runtime, request.timeout_ms) == ("req-1", "python", 2000)
    assert (request.memory_mb, request.cpus, request.network, request.payload) == (512, 1.0, "none", None)


@pytest.mark.parametrize("name", ["cpp", "c++", "C++", "CPP"])
def test_an_alias_means_its_runtime(settings: Settings, name: str) -> None:
    """c++ and cpp are one runtime, in upper or lower case."""
    assert parse_request({**ORIGINAL, "runtime": name}, settings).runtime == "cpp"


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"functionId": None}, "functionId", "missing"),
        ({"s3Key": None}, "s3Key", "missing"),
        ({"runtime": None}, "runtime", "accepted are python, cpp, c++"),
        ({"runtime": "ruby"}, "runtime", "'ruby' is not known; accepted are python, cpp, c++"),
        ({"runtime": 3}, "runtime", "3 is not known"),
        ({"payload": nested(201)}, "payload", "nested more than 200 levels deep"),
        ({"payload": nested(50_000)}, "payload", "nested more than 200 levels deep"),
        ({"payload": [10**4300]}, "payload", "holds a whole number of more than 4300 digits"),
        ({"env": {"A": nested(300)}}, "env", "nested more than 200 levels deep"),
        ({"unknown": nested(300)}, "unknown", "nested more than 200 levels deep"),
        ({"timeoutMs": 0}, "timeoutMs", "greater than 0"),
        ({"timeoutMs": -5}, "timeoutMs", "greater than 0"),
        ({"timeoutMs": 900_001}, "timeoutMs", "900000"),
        ({"timeoutMs": "soon"}, "timeoutMs", "'soon' is not accepted"),
        ({"memoryMb": 5}, "memoryMb", "from 6"),
        ({"memoryMb": 10**6}, "memoryMb", "4096"),
        ({"cpus": 0}, "cpus", "greater than 0"),
        ({"cpus": float("nan")}, "cpus", "nan"),
        ({"requestId": "a b"}, "requestId", "does not match"),
        ({"requestId": "x" * 201}, "requestId", "at most 200"),
        ({"requestid": "r"}, "requestid", "did you mean requestId"),
        ({"colour": "red"}, "colour", "unknown field; accepted are requestId, functionId"),
        ({"env": {"1A": "x"}}, "env", "'1A'"),
        ({"env": {"NANOGRID_RESULT": "x"}}, "env", "reserved"),
        ({"env": {"NAME": "a\0b"}}, "env", "NUL byte"),
        ({"env": {"NAME": "a\ud800b"}}, "env", "half a character"),
        ({"functionId": "a\0b"}, "functionId", "NUL byte"),
        ({"functionId": "a\ud800b"}, "functionId", "unicode"),
        ({"env": {"A": "x\0y"}}, "env", "NUL"),
        ({"network": "bridge"}, "network", "accepted are none"),
        ({"codeSha256": "abc"}, "codeSha256", "does not match"),
        *(
            ({"handler": handler}, "handler", "accepted is module.function, such as app.run or todos/get.run")
            for handler in ("main", "", ".run", "app.", "a..b", "./app.run", "/app.run", "../app.run", "todos.get/run")
        ),
        *(
            ({"handler": handler}, "handler", "does not name a function")
            for handler in ("a b.run", "a.b\n", "a\\b.c", "a\0.b")
        ),
        ({"handler": "a\ud800.b"}, "handler", "unicode"),
        ({"handler": "a." + "x" * 200}, "handler", "at most 200"),
        ({"handler": "main.run", "runtime": "cpp"}, "handler", "no handlers"),
        ({"maxAgeMs": 0}, "maxAgeMs", "greater than 0"),
        ({"stdin": 3}, "stdin", "a number is not accepted"),
        ({"stdin": {"a": 1}}, "stdin", "an object is not accepted"),
        ({"stdin": "a\ud800b"}, "stdin", "half a character (a lone surrogate); send bytes as stdinBase64"),
        ({"stdinBase64": "secret!"}, "stdinBase64", "is not base64"),
        ({"stdinBase64": "YQ"}, "stdinBase64", "is not base64"),
        ({"stdinBase64": "YW\nJj"}, "stdinBase64", "is not base64"),
        ({"stdinBase64": "_-8="}, "stdinBase64", "is not base64"),
        ({"stdinBase64": "ü"}, "stdinBase64", "is not base64"),
        ({"payload": 0, "stdin": ""}, "stdin", "payload is given too, and a function has one input"),
        ({"stdin": "", "stdinBase64": ""}, "stdinBase64", "stdin is given too"),
        ({"payload": [], "stdinBase64": "YQ=="}, "stdinBase64", "payload is given too"),
        ({"stdin": "x", "handler": "app.run"}, "stdin", "a handler receives only a payload"),
    ],
)
def test_a_bad_field_is_named_with_what_is_accepted(
    settings: Settings, change: dict[str, Any], field: str, words: str
) -> None:
    """The error is one sentence with the field's wire name, the value and what is accepted."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_request({**ORIGINAL, **change}, settings)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize("data", [None, [], "text", 3, True])
def test_what_is_no_object_is_refused(settings: Settings, data: object) -> None:
    """A request is a JSON object."""
    with pytest.raises(InvalidRequestError, match="must be a JSON object"):
        parse_request(data, settings)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("field", ["timeoutMs", "memoryMb", "cpus", "maxAgeMs"])
def test_a_boolean_is_no_number(settings: Settings, field: str, value: bool) -> None:
    """Python accepts True as 1, but a boolean for a number is a mistake."""
    with pytest.raises(InvalidRequestError) as refusal:
        parse_request({**ORIGINAL, field: value}, settings)
    assert str(refusal.value) == f"{field}: {str(value).lower()} is a boolean; accepted are numbers"


def test_no_field_of_a_request_takes_a_boolean_but_the_payload(settings: Settings) -> None:
    """Holds for every field, also for future ones."""
    for field in FIELDS:
        if field != "payload":
            with pytest.raises(InvalidRequestError, match=f"^{field}"):
                parse_request({**ORIGINAL, field: True}, settings)
    assert parse_request({**ORIGINAL, "payload": True}, settings).payload is True


EVENTS: list[tuple[dict[str, Any], str]] = [
    (
        {"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:1:t", "MessageId": "m", "Message": "hello"},
        "this is an SNS notification, and its Message is not a request: publish a request's JSON",
    ),
    (
        {
            "Type": "SubscriptionConfirmation",
            "TopicArn": "arn:aws:sns:us-east-1:1:t",
            "Token": "t",
            "Message": "You have",
        },
        "this is SNS' SubscriptionConfirmation: confirm the subscription",
    ),
    (
        {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}}}]},
        "this is an S3 event notification, and names no function: send a request",
    ),
    (
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2014-10-13T15:57:02.089Z", "Bucket": "b"},
        "this is S3's test of its notifications, and names no function",
    ),
    (
        {"Records": [{"eventSource": "aws:dynamodb", "eventName": "INSERT"}]},
        "this is an event of aws:dynamodb, and names no function",
    ),
    (
        {"version": "0", "id": "i", "detail-type": "Object Created", "source": "aws.s3", "account": "1", "detail": {}},
        "this is an EventBridge event, and names no function: give the rule's target an input transformer",
    ),
]


@pytest.mark.parametrize(("event", "words"), EVENTS, ids=range(len(EVENTS)))
def test_an_event_of_aws_is_called_by_its_name(settings: Settings, event: dict[str, Any], words: str) -> None:
    """The error says what to configure, and not that the first field is unknown."""
    with pytest.raises(InvalidRequestError) as refusal:
        parse_request(event, settings)
    assert str(refusal.value).startswith(words)


@pytest.mark.parametrize("event", [{"Type": 5}, {"Records": []}, {"Records": [5]}, {"Records": [{}]}, {"source": "x"}])
def test_what_only_looks_like_an_event_has_an_unknown_field(settings: Settings, event: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="unknown field"):
        parse_request({**ORIGINAL, **event}, settings)


def test_a_payload_may_be_nested_up_to_the_bound(settings: Settings) -> None:
    """A payload at the bound arrives unchanged."""
    request = parse_request({**ORIGINAL, "payload": nested(200)}, settings)
    assert json.loads(json.dumps(request.to_wire()))["payload"] == nested(200)


def test_a_missing_request_id_is_filled_in(settings: Settings) -> None:
    """The given id is used only if the request has none."""
    anonymous = {key: value for key, value in ORIGINAL.items() if key != "requestId"}
    assert parse_request(anonymous, settings, request_id="given").request_id == "given"
    assert parse_request(ORIGINAL, settings, request_id="given").request_id == "req-1"


def test_limits_follow_from_the_timeout(settings: Settings) -> None:
    """Celery's soft limit is the timeout plus the overhead; the hard limit adds the grace time."""
    limits = time_limits(2000, settings)
    assert limits.soft_s == 2 + settings.overhead_s
    assert limits.hard_s == limits.soft_s + settings.hard_limit_grace_s


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"env": {"TOKEN": {"deep": "s3cret"}}},
            "env.TOKEN: an object is not accepted: input should be a valid string",
        ),
        ({"env": ["TOKEN=s3cret"]}, "env: an array is not accepted: input should be a valid dictionary"),
        ({"env": "TOKEN=s3cret"}, "env: a string is not accepted: input should be a valid dictionary"),
        ({"payload": {"key": {"s3cret"}}}, "payload"),
    ],
)
def test_what_is_secret_is_not_shown_in_a_refusal(settings: Settings, fields: dict[str, Any], sentence: str) -> None:
    """Errors are logged: for payload and environment they name only the position and the type."""
    with pytest.raises(InvalidRequestError, match=re.escape(sentence)) as refused:
        parse_request({**ORIGINAL, **fields}, settings)
    assert "s3cret" not in str(refused.value)


@given(payload=json_values, env=st.dictionaries(st.from_regex(r"\A[A-Z]{1,8}\Z"), st.text("abc\n\"'é"), max_size=3))
def test_a_request_survives_the_wire(payload: object, env: dict[str, str]) -> None:
    """Parsing, serializing and parsing again yields the same request."""
    settings = Settings()
    request = parse_request({**ORIGINAL, "payload": payload, "env": env}, settings)
    assert parse_request(json.loads(json.dumps(request.to_wire())), settings) == request


@given(data=st.dictionaries(st.sampled_from([*ORIGINAL, "payload", "env", "cpus", "x"]), json_values))
def test_no_json_object_breaks_the_parser(data: dict[str, Any]) -> None:
    """Any JSON object is a request or raises an InvalidRequestError of one line."""
    try:
        parse_request(data, Settings())
    except InvalidRequestError as error:
        assert "\n" not in str(error)  # noqa: PT017  # most objects are refused, some are not


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, None),
        ({"payload": {"a": 1}}, {"a": 1}),
        ({"payload": ""}, ""),
        ({"stdin": ""}, b""),
        ({"stdin": "3 4\r\nü\0"}, "3 4\r\nü\0".encode()),
        ({"stdin": b"\xff\0text"}, b"\xff\0text"),
        ({"stdin": bytearray(b"a")}, b"a"),
        ({"stdinBase64": ""}, b""),
        ({"stdinBase64": "/wA="}, b"\xff\0"),
    ],
)
def test_what_is_put_on_stdin_as_it_is(settings: Settings, fields: dict[str, Any], given: object) -> None:
    """Text, or bytes in base64; Python code may give bytes. Survives the wire and FunctionRequest."""
    data = {key: value for key, value in ORIGINAL.items() if key != "payload"} | fields
    request = parse_request(data, settings, request_id="r")
    assert request.input == given
    wire = json.loads(json.dumps(request.to_wire()))
    assert parse_request(wire, settings).input == given
    assert FunctionRequest.model_validate({**wire, **fields}).input == given
    assert not {"stdin", "stdinBase64"} & {*wire} or isinstance(given, bytes)


def test_stdin_is_a_secret(settings: Settings) -> None:
    """The error does not contain the value."""
    for field in ("stdin", "stdinBase64"):
        with pytest.raises(InvalidRequestError) as caught:
            parse_request({**ORIGINAL, field: ["hunter2"]}, settings)
        assert "hunter2" not in str(caught.value)


def test_a_request_in_python_needs_what_has_no_default() -> None:
    """The rest comes from the deployment: each request gets a new id, and each client uses the limits of its own settings."""
    request = FunctionRequest(function_id="f", runtime="C++", s3_bucket="code", s3_key="f.zip")
    other = FunctionRequest(function_id="f", runtime="C++", s3_bucket="code", s3_key="f.zip")
    assert request.request_id != other.request_id
    here = current()
    assert (request.timeout_ms, request.memory_mb, request.cpus) == (here.timeout_ms, here.memory_mb, here.cpus)
    there = Settings(timeout_ms=1234, memory_mb=99, cpus=0.5)
    sent = Submission.of(request.to_wire(), there).request
    assert (sent.request_id, sent.timeout_ms, sent.memory_mb, sent.cpus) == (request.request_id, 1234, 99, 0.5)
    assert sent.to_wire()["timeoutMs"] == 1234


def test_what_a_request_says_is_sent_also_where_it_is_the_default() -> None:
    """A client with other defaults does not replace a limit that was given."""
    here = Settings()
    request = FunctionRequest(
        request_id="mine", function_id="f", runtime="python", s3_bucket="code", s3_key="f.zip",
        timeout_ms=here.timeout_ms, memory_mb=here.memory_mb, cpus=here.cpus,
    )  # fmt: skip
    sent = Submission.of(request.to_wire(), Settings(timeout_ms=1, memory_mb=99, cpus=0.5)).request
    assert (sent.request_id, sent.timeout_ms, sent.memory_mb, sent.cpus) == (
        "mine",
        here.timeout_ms,
        here.memory_mb,
        here.cpus,
    )


def test_the_id_that_is_made_is_one_that_the_queue_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """If queues have prefixes, a new id has the prefix of its queue."""
    settings = Settings(request_id_prefixes={"python": "team-a-"})
    monkeypatch.setattr("nanogrid.settings._current", settings)
    request = FunctionRequest(function_id="f", runtime="Python", s3_bucket="code", s3_key="f.zip")
    assert request.request_id.startswith("team-a-")
    assert Submission.of(request.to_wire(), settings).request.request_id == request.request_id
