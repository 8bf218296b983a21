"""Bare requests become Celery messages, whatever they contain."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.settings import Settings
from nanogrid.sqs.transport.envelopes import (
    BareRequest,
    CeleryEnvelope,
    Garbage,
    adopt,
    bare_request_id,
    read_body,
    request_of,
    valid_request_id,
)
from nanogrid.sqs.transport.visibility import HeldMessages, return_delay_s
from nanogrid.wire.names import EXECUTE, SENT_AT

SETTINGS = Settings(overhead_s=100, hard_limit_grace_s=10)
MESSAGE_ID = "9f1c4d0e-0000-4000-8000-000000000000"
ORIGINAL = {
    "requestId": "req-1",
    "functionId": "thumb",
    "runtime": "python",
    "s3Bucket": "code",
    "s3Key": "thumb.zip",
    "timeoutMs": 5000,
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from([*ORIGINAL, "payload", "env", "memoryMb", "cpus", "handler", "network", "body", "headers"])
json_objects = st.dictionaries(names | st.text(max_size=8), json_values, max_size=8)


def test_the_original_message_becomes_a_call_of_the_function_task() -> None:
    """Id, task, limits and arguments are the ones that a Celery producer would have sent."""
    message = adopt(ORIGINAL, MESSAGE_ID, 1_700_000_000_000, SETTINGS)
    headers = message["headers"]
    assert (headers["task"], headers["id"], headers["root_id"]) == (EXECUTE, "req-1", "req-1")
    assert headers["timelimit"] == [115, 105]
    assert headers[SENT_AT] == 1_700_000_000_000
    assert headers["origin"] == "bare-sqs"
    args, kwargs, _ = json.loads(message["body"])
    assert (args, kwargs) == ([ORIGINAL], {})


@pytest.mark.parametrize("request_id", [None, "", 5, "-x", "a b", "x" * 201, ["x"], "a\n"])
def test_the_message_id_stands_in_for_an_unusable_request_id(request_id: object) -> None:
    """A request without a valid id gets the SQS message's id."""
    assert valid_request_id(request_id) is None
    assert bare_request_id({**ORIGINAL, "requestId": request_id}, MESSAGE_ID, "python", SETTINGS) == MESSAGE_ID
    assert adopt({**ORIGINAL, "requestId": request_id}, MESSAGE_ID, None, SETTINGS)["headers"]["id"] == MESSAGE_ID


def test_an_invalid_request_is_adopted_with_default_limits() -> None:
    """An invalid request still becomes a task, which answers it; its own limits are not used."""
    headers = adopt({**ORIGINAL, "timeoutMs": 10**12}, MESSAGE_ID, None, SETTINGS)["headers"]
    assert headers["timelimit"] == [120, 110]
    assert SENT_AT not in headers


def test_a_request_without_id_has_its_own_limits() -> None:
    """A missing request id does not make a request invalid."""
    request = {name: value for name, value in ORIGINAL.items() if name != "requestId"}
    assert adopt(request, MESSAGE_ID, None, SETTINGS)["headers"]["timelimit"] == [115, 105]


def test_secrets_of_payload_and_environment_do_not_show_in_flower() -> None:
    """The arguments that Celery logs and Flower shows name the function, and contain neither payload nor environment."""
    secret = {**ORIGINAL, "payload": {"token": "s3cr3t"}, "env": {"KEY": "s3cr3t"}, "s3Key": "k" * 500, "x": "s3cr3t"}
    headers = adopt(secret, MESSAGE_ID, None, SETTINGS)["headers"]
    assert "s3cr3t" not in json.dumps(headers)
    assert "'functionId': 'thumb'" in headers["argsrepr"]
    assert len(headers["argsrepr"]) < 400


@given(json_objects)
def test_any_json_object_is_adopted(request: dict[str, Any]) -> None:
    """No object makes adoption raise, and its arguments arrive unchanged."""
    message = adopt(request, MESSAGE_ID, 1, SETTINGS)
    wire = json.loads(json.dumps(message))
    args, kwargs, embed = json.loads(wire["body"])
    assert json.dumps(args[0]) == json.dumps(request)
    assert kwargs == {}
    assert set(embed) == {"callbacks", "errbacks", "chain", "chord"}
    hard_s, soft_s = wire["headers"]["timelimit"]
    assert 0 < soft_s < hard_s
    assert valid_request_id(wire["headers"]["id"])


@given(json_objects)
def test_any_json_object_is_read_as_a_message_of_some_kind(request: dict[str, Any]) -> None:
    """A body is a bare request unless it has both parts of a Celery envelope."""
    found = read_body(json.dumps(request))
    if "body" in request and "properties" in request:
        assert isinstance(found, (CeleryEnvelope, Garbage))
    else:
        assert isinstance(found, BareRequest)


@given(st.text() | json_values.map(json.dumps))
def test_no_text_makes_reading_raise(text: str) -> None:
    """Reading a body never raises, and anything but a JSON object is garbage."""
    assert isinstance(read_body(text), (BareRequest, CeleryEnvelope, Garbage))


@given(json_objects.filter(lambda request: "properties" not in request))
def test_base64_around_a_bare_request_is_understood(request: dict[str, Any]) -> None:
    """Bodies in base64, which kombu sends by default, are read."""
    encoded = base64.b64encode(json.dumps(request).encode()).decode()
    found = read_body(encoded)
    assert isinstance(found, BareRequest)
    assert json.dumps(found.request) == json.dumps(request)


@given(json_objects)
def test_the_request_is_found_again_in_the_adopted_message(request: dict[str, Any]) -> None:
    """The reader of dead letters finds the request in an envelope, plain or in base64."""
    message = adopt(request, MESSAGE_ID, 1, SETTINGS)
    assert json.dumps(request_of(CeleryEnvelope(message))) == json.dumps(request)
    message["body"] = base64.b64encode(message["body"].encode()).decode()
    message["properties"]["body_encoding"] = "base64"
    assert json.dumps(request_of(CeleryEnvelope(message))) == json.dumps(request)


def sns(message: str) -> dict[str, Any]:
    """What SNS sends to a queue without raw message delivery."""
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic",
        "Message": message,
        "Timestamp": "2012-05-02T00:54:06.655Z",
        "SignatureVersion": "1",
        "Signature": "EXAMPLEw6JRN...",
        "SigningCertURL": "https://sns.us-west-2.amazonaws.com/SimpleNotificationService.pem",
        "UnsubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe",
    }


def test_a_request_is_taken_out_of_an_sns_notification() -> None:
    """The content is read as with raw delivery: a bare request, or a Celery message."""
    assert read_body(json.dumps(sns(json.dumps(ORIGINAL)))) == BareRequest(ORIGINAL)
    message = adopt(ORIGINAL, MESSAGE_ID, 1, SETTINGS)
    assert read_body(json.dumps(sns(json.dumps(message)))) == read_body(json.dumps(message))


@pytest.mark.parametrize("text", ["hello", "[1]", "", json.dumps(sns(json.dumps(ORIGINAL)))])
def test_what_is_no_request_stays_in_its_notification(text: str) -> None:
    """The sender's error names it as a notification. A notification inside a notification is not unpacked."""
    inner = sns(json.dumps(ORIGINAL)) if text.startswith("{") else sns(text)
    assert read_body(json.dumps(sns(text))) == BareRequest(inner)


@pytest.mark.parametrize("body_encoding", ["utf-8", "base64"])
def test_a_byte_order_mark_is_passed_over(body_encoding: str) -> None:
    """Some writers put one before each text: before a bare request, and before a Celery message's body."""
    bare = read_body("\ufeff" + json.dumps(ORIGINAL))
    assert bare == BareRequest(ORIGINAL)
    message = adopt(ORIGINAL, MESSAGE_ID, 1, SETTINGS)
    message["body"] = "\ufeff" + message["body"]
    if body_encoding == "base64":
        message["body"] = base64.b64encode(message["body"].encode()).decode()
    message["properties"]["body_encoding"] = body_encoding
    found = read_body(json.dumps(message))
    assert isinstance(found, CeleryEnvelope)
    assert found.problem is None
    assert json.loads(found.payload["body"])[0] == [ORIGINAL]


@pytest.mark.parametrize("body", ["", "{", "5", "[]", "[[], {}]", '[["x"], {}, {}]', "[" * 50_000])
def test_an_envelope_without_a_request_holds_none(body: str) -> None:
    """A Celery message with a broken body has no request, and reading it does not raise."""
    message = adopt(ORIGINAL, MESSAGE_ID, 1, SETTINGS)
    assert request_of(CeleryEnvelope({**message, "body": body})) is None


def test_a_message_given_back_is_visible_at_once_until_it_came_too_often() -> None:
    """No delay for the first deliveries, so that redrive works quickly; then a growing one, up to 15 minutes."""
    delays = [return_delay_s(receives) for receives in range(1, 60)]
    assert delays[:20] == [0] * 20
    assert delays[20] == 2
    assert delays == sorted(delays)
    assert delays[-1] == 900


@given(st.dictionaries(st.text(), st.sampled_from(["url-a", "url-b"]), max_size=50))
def test_every_held_message_is_in_one_batch_of_its_queue(held: dict[str, str]) -> None:
    """A heartbeat covers each held message once, ten at a time, never two queues in one call."""
    messages = HeldMessages()
    for handle, url in held.items():
        messages.add(url, handle)
    batches = messages.batches()
    assert sorted(handle for _, handles in batches for handle in handles) == sorted(held)
    assert all(len(handles) <= 10 and {held[handle] for handle in handles} == {url} for url, handles in batches)


def test_a_heartbeat_leaves_young_messages_out_unless_there_is_room() -> None:
    """Short runs cost no call. A call that is due anyway takes younger messages along."""
    messages = HeldMessages()
    for number in range(3):
        messages.add("url", str(number))
    assert messages.batches(least_age_s=60) == []
    assert messages.batches() == [("url", ["0", "1", "2"])]
    time.sleep(0.01)
    messages.renewed(["0", "1"])
    assert messages.batches(least_age_s=0.01) == [("url", ["2", "0", "1"])]
    messages.renewed(["2"])
    assert messages.batches(least_age_s=60) == []
