"""The SQS transport in a producer: what is refused, the errors, and that other apps do not change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.SQS import Transport as KombusTransport

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import ConfigurationError, InvalidRequestError, SubmissionError
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.transport import Transport, transport_options
from tests.support.faulty_proxy import FaultyProxy
from tests.support.services import free_port
from tests.support.transport_worker import TASK, make_app


@pytest.fixture
def settings(proxy: FaultyProxy, unique: str) -> Settings:
    """Settings for queues of this test."""
    return Settings(
        sqs_endpoint_url=proxy.url, create_queues=True, queue_prefix=f"{unique}-", message_limit_bytes=20_000
    )


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """A producer."""
    app = make_app(settings)
    yield app
    app.close()


def sent_message(settings: Settings, name: str = "python") -> dict[str, Any]:
    """The one message in a queue, as SQS holds it."""
    client = sqs_client(settings)
    received = client.receive_message(QueueUrl=queues.resolve(name, settings, client), WaitTimeSeconds=2)
    (message,) = received["Messages"]
    return dict(message)


def test_a_call_is_one_readable_json_message(app: Celery, settings: Settings) -> None:
    """No layer of base64: operators see JSON in a queue, and a payload costs little more than its own size."""
    payload = "x" * 10_000
    app.send_task(TASK, [{"payload": payload}], queue="python")
    body = sent_message(settings)["Body"]
    assert json.loads(json.loads(body)["body"])[0] == [{"payload": payload}]
    assert len(body) < 12_000


def test_a_message_over_the_limit_is_refused_before_anything_is_sent(app: Celery, proxy: FaultyProxy) -> None:
    """The error names the size, the limit, and the alternative."""
    with pytest.raises(InvalidRequestError) as refused:
        app.send_task(TASK, [{"payload": "x" * 30_000}], queue="python")
    assert "20000 are allowed: put large data (payload or stdin) in S3" in refused.value.problem
    assert "S3" in refused.value.problem
    assert proxy.count("SendMessage") == 0


@pytest.mark.parametrize(("countdown", "delay_s"), [(0.5, 0), (30, 30), (900, 900), (7200, 900)])
def test_what_is_sent_for_later_is_kept_back_by_sqs(
    app: Celery, proxy: FaultyProxy, countdown: float, delay_s: int
) -> None:
    """Whole seconds, up to SQS's limit: own attempts with their backoff are sent in the same way."""
    app.send_task(TASK, [{}], queue="python", countdown=countdown)
    (sent,) = proxy.requests("SendMessage")
    assert max(0, delay_s - 2) <= sent.body.get("DelaySeconds", 0) <= delay_s


def test_what_is_sent_for_too_late_a_time_is_refused(app: Celery, proxy: FaultyProxy) -> None:
    with pytest.raises(InvalidRequestError, match=r"eta: 13\.0 hours ahead is too late, a request may wait for 12:"):
        app.send_task(TASK, [{}], queue="python", countdown=13 * 3600)
    assert proxy.count("SendMessage") == 0


def test_message_attributes_count_towards_the_limit(app: Celery, proxy: FaultyProxy) -> None:
    """SQS counts attributes, so the check counts them too."""
    attributes = {"trace": {"DataType": "String", "StringValue": "é" * 10_000}}
    with pytest.raises(InvalidRequestError, match="allowed"):
        app.send_task(TASK, [{}], queue="python", message_attributes=attributes)
    assert proxy.count("SendMessage") == 0


def test_the_size_is_that_of_the_encoded_message(app: Celery, proxy: FaultyProxy) -> None:
    """A payload below the limit is refused if the encoded message is above it."""
    with pytest.raises(InvalidRequestError):
        app.send_task(TASK, [{"payload": "\N{SNOWMAN}" * 6_000}], queue="python")
    app.send_task(TASK, [{"payload": "x" * 18_000}], queue="python")
    assert [request.status for request in proxy.requests("SendMessage")] == [200]


@pytest.mark.parametrize(("status", "code"), [(503, "ServiceUnavailable"), (403, "AccessDenied")])
def test_a_send_that_sqs_refuses_raises_one_clean_error(
    status: int, code: str, app: Celery, proxy: FaultyProxy
) -> None:
    """The producer gets kombu's OperationalError, as with other brokers."""
    proxy.fail("SendMessage", status=status, code=code)
    with pytest.raises(OperationalError, match=code):
        app.send_task(TASK, [{}], queue="python", retry_policy={"max_retries": 1})


def test_a_send_goes_through_after_a_short_outage(app: Celery, proxy: FaultyProxy) -> None:
    """Two server errors are retried without the caller noticing."""
    proxy.fail("SendMessage", status=500, times=2)
    app.send_task(TASK, [{}], queue="python")
    assert proxy.requests("SendMessage")[-1].status == 200


def test_a_send_without_any_endpoint_raises_one_clean_error(unique: str) -> None:
    """Nothing listens at the address: the producer gets an error in bounded time."""
    app = make_app(Settings(sqs_endpoint_url=f"http://127.0.0.1:{free_port()}", create_queues=True))
    with pytest.raises(OperationalError, match="connect"):
        app.send_task(TASK, [{}], queue="python", retry_policy={"max_retries": 1})
    app.close()


def test_a_missing_queue_is_named_and_not_created(proxy: FaultyProxy, unique: str) -> None:
    """If queues belong to the deployment, a send to a missing queue raises an error with its name, and creates nothing."""
    app = make_app(Settings(sqs_endpoint_url=proxy.url, queue_prefix=f"{unique}-"))
    with pytest.raises(ConfigurationError, match=f"{unique}-python.*does not exist"):
        app.send_task(TASK, [{}], queue="python")
    assert proxy.count("CreateQueue") == 0
    app.close()


def test_a_queue_named_by_url_is_never_looked_up(proxy: FaultyProxy, settings: Settings) -> None:
    """With a URL in the settings a producer needs only the permission to send."""
    url = queues.resolve("python", settings)
    seen = proxy.count()
    app = make_app(Settings(sqs_endpoint_url=proxy.url, queue_urls={"python": url}))
    app.send_task(TASK, [{}], queue="python")
    assert [request.action for request in proxy.requests()[seen:]] == ["SendMessage"]
    app.close()


def test_another_celery_app_on_sqs_keeps_kombus_transport(app: Celery) -> None:
    """kombu's table of transports is unchanged, and another app with `sqs://` gets kombu's own transport."""
    other = Celery("other", broker="sqs://", set_as_current=False)
    with app.connection_for_write() as ours, other.connection_for_write() as theirs:
        assert ours.get_transport_cls() is Transport
        assert theirs.get_transport_cls() is KombusTransport
    assert TRANSPORT_ALIASES["sqs"] == "kombu.transport.SQS:Transport"
    other.close()


def test_the_endpoint_comes_from_the_aws_environment(
    proxy: FaultyProxy, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a setting, AWS_ENDPOINT_URL_SQS and AWS_ENDPOINT_URL give the address of SQS."""
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"):
        with monkeypatch.context() as environment:
            environment.setenv(variable, proxy.url)
            seen = proxy.count()
            app = make_app(Settings(create_queues=True, queue_prefix=f"{unique}-"))
            app.send_task(TASK, [{}], queue="python")
            assert proxy.count() > seen
            app.close()


@pytest.mark.parametrize("url", ["sqs://key:secret@", "sqs://localhost:9324", "redis://localhost", "amqp://"])
def test_a_broker_url_with_more_than_sqs_is_refused(url: str) -> None:
    """Endpoint and credentials each have one place; the error names it and repeats no secret."""
    with pytest.raises(ConfigurationError, match="NANOGRID_SQS_ENDPOINT_URL") as refused:
        transport_options(Settings(broker_url=url))
    assert "secret" not in str(refused.value)


def test_transport_options_show_no_secrets() -> None:
    """`celery report` and `inspect conf` print the options: they contain no URL with a password."""
    first = Settings(result_url="redis://:hunter2@h/0", monitor_url="redis://:hunter2@h/1")
    shown = repr(transport_options(first))
    assert "hunter2" not in shown
    assert shown != repr(transport_options(first.model_copy(update={"queue_prefix": "x"})))


@pytest.fixture
def client(settings: Settings, redis_url: str) -> Iterator[Client]:
    """A client for the queues of this test."""
    made = Client(settings.model_copy(update={"result_url": redis_url}))
    with closing(made.app):
        yield made


def request(number: int, **fields: Any) -> dict[str, Any]:
    """A request with an id of its own."""
    named = {"functionId": "f", "runtime": "python", "s3Bucket": "code", "s3Key": "f.zip"}
    return {**named, "requestId": f"r{number}", **fields}


def ids_in(call: Any) -> list[str]:
    """The task ids in a call of SendMessageBatch."""
    return [json.loads(entry["MessageBody"])["headers"]["id"] for entry in call.body["Entries"]]


def test_many_requests_are_sent_ten_at_a_time(client: Client, proxy: FaultyProxy) -> None:
    """Requests for two queues, in order: a call holds ten of one queue, and each message is what `submit` sends."""
    asked = [*(request(number) for number in range(12)), request(12, runtime="cpp")]
    assert client.submit_many(asked) == [f"r{number}" for number in range(13)]
    assert [len(call.body["Entries"]) for call in proxy.requests("SendMessageBatch")] == [10, 2, 1]
    assert [each for call in proxy.requests("SendMessageBatch") for each in ids_in(call)] == [
        f"r{number}" for number in range(13)
    ]
    assert proxy.count("SendMessage") == 0
    client.submit(request(0))
    (single,) = proxy.requests("SendMessage")
    alone = json.loads(single.body["MessageBody"])
    together = json.loads(proxy.requests("SendMessageBatch")[0].body["Entries"][0]["MessageBody"])
    assert alone["headers"].keys() == together["headers"].keys()
    assert alone["body"] == together["body"]


def test_a_call_is_never_larger_than_a_message_may_be(client: Client, proxy: FaultyProxy) -> None:
    """SQS bounds the size of all entries together like that of one message."""
    client.submit_many(request(number, payload="x" * 8_000) for number in range(4))
    assert [len(call.body["Entries"]) for call in proxy.requests("SendMessageBatch")] == [2, 2]
    assert all(call.status == 200 for call in proxy.requests("SendMessageBatch"))


@pytest.mark.parametrize("wrong", [{"timeoutMs": 0}, {"payload": "x" * 30_000}])
def test_one_bad_request_of_many_stops_all(client: Client, proxy: FaultyProxy, wrong: dict[str, Any]) -> None:
    """Each request is checked before the first one is sent."""
    with pytest.raises(InvalidRequestError):
        client.submit_many([*(request(number) for number in range(12)), request(12, **wrong)])
    assert proxy.count("SendMessageBatch") == 0


def answer(ids: list[str], failed: dict[str, bool]) -> bytes:
    """SQS's answer to a batch. `failed` are ids of entries, and whether the sender is to blame."""
    accepted = [{"Id": each, "MessageId": each, "MD5OfMessageBody": ""} for each in ids if each not in failed]
    refused = [
        {"Id": each, "Code": "Busy", "Message": "not now", "SenderFault": fault} for each, fault in failed.items()
    ]
    return json.dumps({"Successful": accepted, "Failed": refused}).encode()


def test_only_what_sqs_did_not_accept_is_sent_again(client: Client, proxy: FaultyProxy) -> None:
    """Two entries fail because of SQS: they alone are in the next call, and the caller does not notice."""
    proxy.garble("SendMessageBatch", body=answer(list("0123"), {"1": False, "3": False}), times=1)
    assert client.submit_many(request(number) for number in range(4)) == ["r0", "r1", "r2", "r3"]
    first, second = proxy.requests("SendMessageBatch")
    assert (ids_in(first), ids_in(second)) == (["r0", "r1", "r2", "r3"], ["r1", "r3"])


def test_an_entry_that_cannot_be_sent_is_named(client: Client, proxy: FaultyProxy) -> None:
    """SQS blames the sender for one entry: it is not repeated, all others are sent, and the error names both."""
    proxy.garble("SendMessageBatch", body=answer(list("0123456789"), {"2": True}), times=1)
    with pytest.raises(SubmissionError, match="1 of 12 requests were not sent, the first is 'r2': not now") as partly:
        client.submit_many(request(number) for number in range(12))
    assert partly.value.failed == {"r2": "not now"}
    assert partly.value.sent == [f"r{number}" for number in range(12) if number != 2]
    assert proxy.count("SendMessageBatch") == 2


def test_a_call_that_sqs_refuses_ends_the_sending(client: Client, proxy: FaultyProxy) -> None:
    """The first call is sent, the second one is refused: the error names what was sent and what was not."""
    client.submit_many([request(0)])
    proxy.garble("SendMessageBatch", body=answer(list("0123456789"), {}), times=1)
    proxy.fail("SendMessageBatch", status=403, code="AccessDenied")
    with pytest.raises(SubmissionError, match="AccessDenied") as partly:
        client.submit_many(request(number) for number in range(25))
    assert partly.value.sent == [f"r{number}" for number in range(10)]
    assert list(partly.value.failed) == [f"r{number}" for number in range(10, 25)]


def test_the_parts_of_a_map_are_sent_together(client: Client, proxy: FaultyProxy) -> None:
    """`map` and `map_reduce` need one call for ten parts."""
    function = {name: value for name, value in request(0).items() if name != "requestId"}
    ids = client.map({**function, "requestId": "m"}, list(range(12)))
    assert ids == [f"m/{number}" for number in range(12)]
    client.map_reduce(function, list(range(12)), {**function, "requestId": "final"})
    sent = [ids_in(call) for call in proxy.requests("SendMessageBatch")]
    assert [len(each) for each in sent[:2]] == [10, 2]
    assert len(sent) == 4
    assert sent[2] + sent[3] == [f"final/{number}" for number in range(12)]
    assert proxy.count("SendMessage") == 0
