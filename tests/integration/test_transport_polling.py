"""Polls on kombu's own event loop, against faults that would take a worker test too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub, set_event_loop

from nanogrid.connections.sqs import sqs_client
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.transport import polling
from nanogrid.sqs.transport.poll_status import poll_status
from nanogrid.sqs.transport.polling import Backoff, PollFailure, read_answer
from tests.support.faulty_proxy import FaultyProxy
from tests.support.services import wait_until
from tests.support.transport_worker import make_app

# kombu 5.7 calls two functions of pycurl that pycurl 7.45 and later call deprecated; in its event loop a warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:(socket_all|IOCTLFUNCTION) is deprecated:DeprecationWarning")


@pytest.fixture
def settings(proxy: FaultyProxy, unique: str) -> Settings:
    """Settings for queues of this test."""
    return Settings(sqs_endpoint_url=proxy.url, create_queues=True, queue_prefix=f"{unique}-", receive_wait_s=1)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """kombu's event loop, as in a worker."""
    hub = Hub()
    set_event_loop(hub)
    yield hub
    hub.close()
    set_event_loop(None)


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """An app for connections."""
    app = make_app(settings)
    yield app
    app.close()


Send = Callable[..., None]


@pytest.fixture
def send(settings: Settings) -> Send:
    """Sends a bare request, or another body, to the queue `python`."""
    client = sqs_client(settings)
    url = queues.resolve("python", settings, client)

    def put(body: str = '{"requestId": "r"}') -> None:
        client.send_message(QueueUrl=url, MessageBody=body)

    return put


def run_until(hub: Hub, condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Run the event loop until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        hub.run_once()


def consume(connection: Connection, taken: list[Any]) -> Consumer:
    """Consume the queue `python`; messages are only collected."""
    consumer = Consumer(connection.default_channel, [Queue("python")], on_message=taken.append, accept=["json"])
    consumer.consume()
    return consumer


def test_a_poll_that_hangs_is_given_up(
    hub: Hub, app: Celery, settings: Settings, send: Send, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll on a half-open connection ends after the wait time and a grace period; the next poll works."""
    monkeypatch.setattr(polling, "GRACE_S", 0.5)
    proxy.hang("ReceiveMessage", times=1)
    taken: list[Any] = []
    with app.connection_for_read() as connection:
        consume(connection, taken)
        send()
        began = time.monotonic()
        run_until(hub, lambda: taken)
        assert 2.4 < time.monotonic() - began < 6, "1 s of long poll, 0.5 s of grace, 1 s of back-off"
    assert proxy.count("ReceiveMessage") == 2


def test_what_is_read_is_known_to_the_whole_process(
    hub: Hub, app: Celery, settings: Settings, send: Send, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status shows whether SQS answers, the number of failures, messages received and refused, and the youngest message's time."""
    monkeypatch.setattr(polling, "GRACE_S", 0.1)
    proxy.hang("ReceiveMessage", times=1)
    taken: list[Any] = []
    seen, now = poll_status("python"), time.time()
    received, refused, failures = seen.received, seen.refused, seen.failures
    with app.connection_for_read() as connection:
        consume(connection, taken)
        run_until(hub, lambda: seen.failing)
        send("no request of anybody")
        send()
        run_until(hub, lambda: taken)
    assert not seen.failing
    assert seen.polled_at >= now
    assert (seen.failures - failures, seen.refused - refused) == (1, 1)
    assert seen.received - received >= 2
    assert seen.newest_sent_at is not None
    assert now - 5 < seen.newest_sent_at < time.time() + 5


def test_a_poll_asks_for_what_the_worker_needs(
    hub: Hub, app: Celery, settings: Settings, send: Send, proxy: FaultyProxy
) -> None:
    """Each poll requests the time of sending and the number of deliveries."""
    taken: list[Any] = []
    with app.connection_for_read() as connection:
        consume(connection, taken)
        send()
        run_until(hub, lambda: taken)
        attributes = taken[0].delivery_info["sqs_message"]["Attributes"]
        assert int(attributes["ApproximateReceiveCount"]) == 1
        assert abs(int(attributes["SentTimestamp"]) / 1000 - time.time()) < 60
        assert "Body" not in taken[0].delivery_info["sqs_message"]


def test_a_channel_made_without_a_loop_polls_once_it_is_attached(
    hub: Hub, app: Celery, settings: Settings, send: Send
) -> None:
    """After a reset of Celery's hub a new connection has no loop; registering it is enough."""
    set_event_loop(None)
    taken: list[Any] = []
    with app.connection_for_read() as connection:
        connection.connect()
        connection.register_with_event_loop(hub)
        consume(connection, taken)
        send()
        run_until(hub, lambda: taken)


def test_an_answer_without_the_wait_does_not_make_polls_spin(
    hub: Hub, app: Celery, settings: Settings, send: Send, proxy: FaultyProxy
) -> None:
    """A server without long polls is polled once a second, not all the time."""
    proxy.garble("ReceiveMessage", body=b"{}")
    with app.connection_for_read() as connection:
        consume(connection, [])
        end = time.monotonic() + 2.5
        run_until(hub, lambda: time.monotonic() > end)
    assert proxy.count("ReceiveMessage") <= 3


def test_no_credentials_make_the_poll_wait(
    hub: Hub,
    app: Celery,
    settings: Settings,
    send: Send,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Missing credentials are looked up again later, and the loop continues."""
    send()
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with app.connection_for_read() as connection:
        consume(connection, [])
        run_until(hub, lambda: "next in 2 s" in caplog.text)
    assert "Unable to locate credentials" in caplog.text


def test_messages_for_a_consumer_that_left_are_given_back(
    hub: Hub, settings: Settings, send: Send, proxy: FaultyProxy
) -> None:
    """A poll that ends after its consumer was cancelled leaves its messages visible, as if they had not been delivered."""
    taken: list[Any] = []
    # The poll must still be running when the message arrives, however slow this machine is.
    app = make_app(settings.model_copy(update={"receive_wait_s": 10}))
    with closing(app), app.connection_for_read() as connection:
        consumer = consume(connection, taken)
        run_until(hub, lambda: proxy.count("ReceiveMessage"))
        consumer.cancel()
        send()
        run_until(hub, lambda: proxy.count("DeleteMessage"))
    assert taken == []
    client = sqs_client(settings)
    answer = client.receive_message(
        QueueUrl=queues.resolve("python", settings, client),
        MaxNumberOfMessages=10,
        MessageSystemAttributeNames=["ApproximateReceiveCount"],
    )
    (message,) = answer["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"


def test_an_error_of_the_connection_gives_the_rest_of_the_batch_back(
    hub: Hub, app: Celery, settings: Settings, send: Send
) -> None:
    """If handling one message breaks the connection, the others of the same poll do not wait for their visibility timeout."""
    for _ in range(3):
        send()

    def lose_connection(_: Any) -> None:
        raise ConnectionResetError("lost")

    with app.connection_for_read() as connection:
        consumer = Consumer(connection.default_channel, [Queue("python")], on_message=lose_connection, accept=["json"])
        consumer.consume()
        with pytest.raises(ConnectionResetError):
            run_until(hub, lambda: False)
        assert queues.depths(["python"], settings)[0].in_flight == 1
    assert queues.depths(["python"], settings)[0].visible == 3


def send_many(settings: Settings, number: int) -> None:
    """Send bare requests, ten with one call."""
    client = sqs_client(settings)
    url = queues.resolve("python", settings, client)
    for begin in range(0, number, 10):
        entries = [{"Id": str(each), "MessageBody": f'{{"requestId": "r{each}"}}'} for each in range(begin, begin + 10)]
        client.send_message_batch(QueueUrl=url, Entries=entries)


@pytest.fixture
def busy(hub: Hub, app: Celery) -> Iterator[tuple[Connection, list[Any]]]:
    """A connection that holds one message at a time and finishes each at once, while `taken` has fewer than 20."""
    taken: list[Any] = []

    def take(message: Any) -> None:
        taken.append(message)
        if len(taken) < 20:
            hub.call_later(0.001, message.ack)

    with app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.basic_qos(0, 1, False)
        Consumer(channel, [Queue("python")], on_message=take, accept=["json"]).consume()
        yield connection, taken


def test_a_busy_worker_receives_and_deletes_many_messages_with_one_call(
    hub: Hub, settings: Settings, proxy: FaultyProxy, busy: tuple[Connection, list[Any]]
) -> None:
    """Twenty short tasks, one at a time: a call receives what will be run at once, and a call deletes what is done."""
    connection, taken = busy
    send_many(settings, 20)
    run_until(hub, lambda: len(taken) == 20)
    taken[-1].ack()
    connection.close()
    depth = queues.depths(["python"], settings)[0]
    assert (depth.visible, depth.in_flight) == (0, 0)
    assert proxy.count("ReceiveMessage") <= 8
    assert proxy.count("DeleteMessageBatch") <= 6
    assert proxy.count("DeleteMessage") == 0


def test_messages_received_ahead_return_when_a_task_takes_long(
    hub: Hub, settings: Settings, busy: tuple[Connection, list[Any]]
) -> None:
    """Behind a long task a message waits for about a second. Then it is in its queue again, as if it had not been delivered."""
    _, taken = busy
    send_many(settings, 40)
    run_until(hub, lambda: len(taken) == 20)
    began = time.monotonic()
    run_until(hub, lambda: queues.depths(["python"], settings)[0].visible == 20)
    assert time.monotonic() - began < 5
    assert queues.depths(["python"], settings)[0].in_flight == 1
    client = sqs_client(settings)
    answer = client.receive_message(
        QueueUrl=queues.resolve("python", settings, client),
        MaxNumberOfMessages=10,
        MessageSystemAttributeNames=["ApproximateReceiveCount"],
    )
    assert {message["Attributes"]["ApproximateReceiveCount"] for message in answer["Messages"]} == {"1"}


def test_closing_deletes_what_is_done_and_returns_the_rest(hub: Hub, settings: Settings, app: Celery) -> None:
    """Deletions that wait for others are sent before the connection is closed, and its thread ends with it."""
    taken: list[Any] = []
    before = set(threading.enumerate())
    with app.connection_for_read() as connection:
        consume(connection, taken)
        send_many(settings, 10)
        run_until(hub, lambda: len(taken) == 10)
        for message in taken[:4]:
            message.ack()
    depth = queues.depths(["python"], settings)[0]
    assert (depth.visible, depth.in_flight) == (6, 0)
    wait_until(
        lambda: not [one for one in set(threading.enumerate()) - before if one.name == "sqs-deletions"],
        "the thread ends",
    )


def test_the_blocking_path_leaves_garbage_in_the_queue(app: Celery, settings: Settings, send: Send) -> None:
    """Without an event loop, garbage is not delivered and not deleted either."""
    send("garbage")
    with app.connection_for_read() as connection:
        assert connection.default_channel.basic_get("python") is None
    assert queues.depths(["python"], settings)[0].visible == 1


def test_waiting_times_double_from_one_to_thirty_seconds() -> None:
    """1, 2, 4, 8, 16, 30, 30 ... and from 1 again after a success."""
    backoff = Backoff()
    assert [backoff.failed() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.succeeded() == 7
    assert backoff.failed() == 1


@pytest.mark.parametrize(
    "body",
    [b"", None, b"<html>", b"5", b"[]", b'{"Messages": 5}', b'{"Messages": [5]}', b'{"Messages": [{"Body": "x"}]}'],
)
def test_an_answer_that_is_not_of_sqs_is_a_failure(body: bytes | None) -> None:
    """An answer with status 200 in another form is a failure, never an empty queue."""
    assert isinstance(read_answer(200, body), PollFailure)


def test_a_refusal_names_the_code_and_the_message() -> None:
    """The log line of a failed poll gives the reason."""
    body = b'{"__type": "com.amazonaws.sqs#AccessDenied", "message": "no sqs:ReceiveMessage"}'
    failure = read_answer(403, body)
    assert failure == PollFailure("HTTP 403: AccessDenied: no sqs:ReceiveMessage", "AccessDenied")
    assert read_answer(502, b"<html>") == PollFailure("HTTP 502")
    gone = read_answer(400, b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist"}')
    assert isinstance(gone, PollFailure)
    assert gone.queue_is_gone
