"""The SQS transport under a real worker: what it runs, how often, and how soon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from nanogrid.connections import sqs
from nanogrid.connections.sqs import sqs_client
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from tests.support.faulty_proxy import FaultyProxy
from tests.support.services import Service, wait_until
from tests.support.transport_worker import TASK, Records, make_app, running_worker


@pytest.fixture
def settings(proxy: FaultyProxy, unique: str) -> Settings:
    """Settings for queues of this test, with the shortest visibility timeout that leaves room for a heartbeat."""
    return Settings(
        sqs_endpoint_url=proxy.url,
        create_queues=True,
        queue_prefix=f"{unique}-",
        visibility_timeout_s=3,
        visibility_heartbeat_s=1,
        receive_wait_s=2,
        max_receives=4,
    )


@pytest.fixture
def records(redis_url: str, unique: str) -> Iterator[Records]:
    """The file in which this test's task records its runs."""
    records = Records(redis_url, unique)
    yield records
    records.close()


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """A producer."""
    app = make_app(settings)
    yield app
    app.close()


class Queue:
    """A queue as boto3 shows it, without the proxy."""

    def __init__(self, settings: Settings, aws_url: str, name: str = "python") -> None:
        self.settings = settings.model_copy(update={"sqs_endpoint_url": aws_url})
        self.client = sqs_client(self.settings)
        self.name = name
        self.url = queues.resolve(name, self.settings, self.client)

    def send(self, body: Any) -> str:
        """Send a body to the queue and return its message id."""
        text = body if isinstance(body, str) else json.dumps(body)
        return str(self.client.send_message(QueueUrl=self.url, MessageBody=text)["MessageId"])

    def depth(self) -> queues.QueueDepth:
        """The visible messages."""
        return queues.depths([self.name], self.settings, self.client)[0]

    def wait_until_empty(self) -> None:
        """Wait until every message is deleted."""

        def empty() -> bool:
            depth = self.depth()
            return depth.visible + depth.in_flight + depth.delayed == 0

        wait_until(empty, f"{self.name} is empty")

    def dead_letters(self) -> dict[str, str]:
        """Bodies of the dead letters by message id. They stay in the queue."""
        url = queues.dead_letter_url(self.url, self.client)
        found: dict[str, str] = {}
        while messages := self.client.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            found |= {message["MessageId"]: message["Body"] for message in messages}
        return found


@pytest.fixture
def queue(settings: Settings, aws_url: str) -> Queue:
    """The queue `python`, with its dead-letter queue."""
    return Queue(settings, aws_url)


def request(request_id: str, **payload: Any) -> dict[str, Any]:
    """A request as the original service sends it, with a payload for the recording task."""
    return {
        "requestId": request_id,
        "functionId": "f",
        "runtime": "python",
        "s3Bucket": "code",
        "s3Key": "f.zip",
        "timeoutMs": 5000,
        "payload": payload,
    }


def test_one_queue_carries_bare_requests_and_celery_messages(
    tmp_path: Path, settings: Settings, records: Records, app: Celery, queue: Queue
) -> None:
    """A bare JSON object and a Celery call on the same queue both run, each under its own id."""
    with running_worker(tmp_path, settings, records):
        queue.send(request("bare-1"))
        sent = app.send_task(TASK, [request("celery-1")], task_id="celery-1", queue="python")
        records.wait_for_end("bare-1")
        records.wait_for_end(sent.id)
        queue.wait_until_empty()
    bare = records.started("bare-1")[0]
    assert bare["request"] == request("bare-1")
    assert bare["limits"] == [5 + 120 + 15, 5 + 120]
    assert abs(bare["sent_at_ms"] / 1000 - bare["at"]) < 10
    assert records.started("celery-1")[0]["sent_at_ms"] == pytest.approx(time.time() * 1000, abs=30_000)
    assert queue.depth().dead_letters == 0


def test_a_bare_request_without_a_usable_id_runs_under_its_message_id(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """The SQS message id replaces a missing or invalid request id."""
    with running_worker(tmp_path, settings, records):
        missing = queue.send({"runtime": "python"})
        broken = queue.send({"requestId": "../../etc/passwd", "payload": {}})
        records.wait_for_end(missing)
        records.wait_for_end(broken)


@pytest.mark.parametrize(
    "break_polls",
    [
        pytest.param(lambda proxy: proxy.fail("ReceiveMessage", status=503, times=2), id="503"),
        pytest.param(lambda proxy: proxy.fail("ReceiveMessage", status=500, times=2), id="500"),
        pytest.param(lambda proxy: proxy.fail("ReceiveMessage", status=403, code="AccessDenied", times=2), id="403"),
        pytest.param(lambda proxy: proxy.garble("ReceiveMessage", times=2), id="another server's page"),
        pytest.param(lambda proxy: proxy.garble("ReceiveMessage", body=b"[]", times=2), id="no object"),
        pytest.param(lambda proxy: proxy.truncate("ReceiveMessage", times=2), id="truncated"),
        pytest.param(lambda proxy: proxy.drop("ReceiveMessage", times=2), id="dropped"),
    ],
)
def test_a_poll_that_fails_is_repeated_after_a_while(
    break_polls: Any, proxy: FaultyProxy, tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """A failed poll is logged and repeated with growing pauses; then the same worker runs the message."""
    break_polls(proxy)
    with running_worker(tmp_path, settings, records, queues=["python"]) as worker:
        queue.send(request("after"))
        records.wait_for_end("after")
        assert worker.alive
        assert "failed, next in 1 s" in worker.log()
        assert "failed, next in 2 s" in worker.log()
        assert "work again after 2 failure(s)" in worker.log()
    first, second, third = [poll.at for poll in proxy.requests("ReceiveMessage")[:3]]
    assert 0.9 < second - first < 1.9
    assert 1.9 < third - second < 2.9


def test_a_worker_outlives_an_endpoint_that_refuses_connections(
    moto: Service, tmp_path: Path, settings: Settings, records: Records, queue: Queue, proxy: FaultyProxy
) -> None:
    """With nothing listening, the worker waits; once SQS listens, it runs the waiting messages."""
    with running_worker(tmp_path, settings, records) as worker:
        proxy.stop()
        worker.wait_for_log("failed, next in 2 s")
        queue.send(request("later"))
        with FaultyProxy(moto.port, proxy.port):
            records.wait_for_end("later")
            assert worker.alive


def test_a_worker_starts_while_sqs_is_away(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue, proxy: FaultyProxy
) -> None:
    """A worker that finds no SQS at its start begins to work once SQS is up."""
    proxy.fail(status=503)
    with running_worker(tmp_path, settings, records) as worker:
        worker.wait_for_log("failed, next in 1 s")
        queue.send(request("early"))
        proxy.heal()
        records.wait_for_end("early")


def test_a_restarted_consumer_polls_again_and_runs_nothing_twice(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """After the loss of a connection the worker receives new messages, and a request that was running does not run again."""
    with running_worker(tmp_path, settings, records) as worker:
        queue.send(request("long", sleep_s=7))
        wait_until(lambda: records.started("long"), "the long run has begun")
        records.restart_consumer()
        worker.wait_for_log("Connection to broker lost")
        queue.send(request("after"))
        records.wait_for_end("after")
        records.wait_for_end("long")
        queue.wait_until_empty()
    assert len(records.started("long")) == 1


def test_every_held_message_stays_invisible(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue, aws_url: str
) -> None:
    """Held longer than the visibility timeout, a running or waiting message does not become visible."""
    second = Queue(settings, aws_url, "cpp")

    def none_shows() -> bool:
        assert (queue.depth().visible, second.depth().visible) == (0, 0)
        return "running" in records.ended()

    with running_worker(tmp_path, settings, records, concurrency=1, arguments=["--prefetch-multiplier", "2"]):
        queue.send(request("running", sleep_s=8))
        wait_until(lambda: records.started("running"), "the long run has begun")
        second.send(request("waiting"))
        wait_until(lambda: (queue.depth().in_flight, second.depth().in_flight) == (1, 1), "both are held")
        wait_until(none_shows, "the long run has ended")
        records.wait_for_end("waiting")
        queue.wait_until_empty()
        second.wait_until_empty()
    assert sorted(start["id"] for start in records.started()) == ["running", "waiting"]


def early(request_id: str, eta: float) -> str:
    """A Celery message with an `eta`, as anyone may send it: SQS delivers it at once."""
    headers = {"task": TASK, "id": request_id, "eta": datetime.fromtimestamp(eta, timezone.utc).isoformat()}
    return envelope(body=json.dumps([[request(request_id)], {}, {}]), headers=headers)


def ran_or_died(records: Records, queue: Queue, request_id: str) -> bool:
    """Whether a request has finished, successfully or not."""
    assert queue.depth().dead_letters == 0, "it went to the dead-letter queue, and nobody had tried it"
    return request_id in records.ended()


def test_what_waits_for_its_time_outlives_orderly_restarts(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """The request waits in SQS: a worker that ends has nothing to give back, and its first attempt is its first delivery."""
    strict = settings.model_copy(update={"max_receives": 1})
    queues.resolve("python", queue.settings.model_copy(update={"max_receives": 1}), queue.client)
    with running_worker(tmp_path, strict, records):
        sent_at = time.time()
        due_at = sent_at + 6
        queue.send(early("later", due_at))
        wait_until(lambda: queue.depth().delayed == 1, "the worker has received it and let it wait")
    with running_worker(tmp_path, strict, records):
        wait_until(lambda: ran_or_died(records, queue, "later"), "it has run")
        queue.wait_until_empty()
    (start,) = records.started("later")
    assert start["receives"] == 1
    assert start["at"] >= due_at
    assert abs(start["sent_at_ms"] / 1000 - sent_at) < 1, "its age is that of the first message"


@pytest.mark.parametrize("step", ["ChangeMessageVisibility", "SendMessage", "DeleteMessage"])
def test_no_step_that_fails_loses_what_waits_or_runs_it_early(
    step: str, tmp_path: Path, settings: Settings, records: Records, queue: Queue, proxy: FaultyProxy
) -> None:
    """Postponing takes three calls; whichever fails, the request runs at its time, and a second copy arrives then too, if any."""
    with running_worker(tmp_path, settings, records) as worker:
        proxy.fail(step, status=503, times=sqs.ATTEMPTS)
        due_at = time.time() + 6
        queue.send(early("later", due_at))
        records.wait_for_end("later")
        queue.wait_until_empty()
        assert worker.alive
    starts = records.started("later")
    assert all(start["at"] >= due_at for start in starts)
    assert len(starts) == (2 if step == "DeleteMessage" else 1), "without claims each message that is there runs"
    assert proxy.count("SendMessage") <= 1 + sqs.ATTEMPTS


def test_what_a_worker_never_began_costs_no_delivery_when_it_ends(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """A message that waited behind a run is ready for the next worker at once, as new: same id and age, no delivery counted."""
    strict = settings.model_copy(update={"max_receives": 1, "visibility_timeout_s": 60, "visibility_heartbeat_s": 20.0})
    queues.resolve("python", queue.settings.model_copy(update={"max_receives": 1}), queue.client)
    with running_worker(tmp_path, strict, records, concurrency=1, arguments=["--prefetch-multiplier", "3"]) as first:
        queue.send(request("running", sleep_s=3))
        wait_until(lambda: records.started("running"), "the run has begun")
        sent_at = time.time()
        unnamed = queue.send({"runtime": "python"})
        queue.send(early("celery", sent_at))
        wait_until(lambda: queue.depth().in_flight == 3, "all are held")
        first.terminate()
        first.process.wait(20)
    assert (queue.depth().visible, queue.depth().in_flight) == (2, 0)
    with running_worker(tmp_path, strict, records):
        for request_id in (unnamed, "celery"):
            wait_until(partial(ran_or_died, records, queue, request_id), f"{request_id} has run")
        queue.wait_until_empty()
    assert len(records.started("running")) == 1
    for request_id in (unnamed, "celery"):
        (start,) = records.started(request_id)
        assert start["receives"] == 1
        assert abs(start["sent_at_ms"] / 1000 - sent_at) < 2


def test_a_run_outlasts_the_visibility_timeout_during_a_warm_shutdown(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """While a worker drains and waits for a long run, no other worker receives its message."""
    with running_worker(tmp_path, settings, records) as first:
        queue.send(request("long", sleep_s=8))
        wait_until(lambda: records.started("long"), "the long run has begun")
        first.terminate()
        with running_worker(tmp_path, settings, records):
            records.wait_for_end("long")
            queue.wait_until_empty()
        first.process.wait(20)
    assert len(records.started("long")) == 1


def test_a_killed_child_gives_its_message_back_at_once(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """kill -9 of a child: the message runs again as soon as Celery notices, not after a long poll or the visibility timeout."""
    patient = settings.model_copy(update={"receive_wait_s": 20, "visibility_timeout_s": 60})
    with running_worker(tmp_path, patient, records):
        queue.send(request("victim", kill=True))
        records.wait_for_end("victim")
    first, second = records.started("victim")
    assert second["at"] - first["at"] < 10, "Celery looks for dead children every 5 s"
    assert (first["receives"], second["receives"]) == (1, 2)


def test_a_killed_worker_gives_its_messages_back_after_the_visibility_timeout(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """kill -9 of the whole worker: another worker runs the message once its invisibility is no longer renewed."""
    with running_worker(tmp_path, settings, records) as doomed:
        queue.send(request("orphan", sleep_s=1))
        wait_until(lambda: records.started("orphan"), "the run has begun")
        doomed.kill()
    with running_worker(tmp_path, settings, records):
        wait_until(lambda: len(records.started("orphan")) == 2, "the message runs again")
        queue.wait_until_empty()


def envelope(**changes: Any) -> str:
    """A Celery message as it is in the queue, with parts replaced."""
    headers = {"lang": "py", "task": TASK, "id": "broken", "root_id": "broken", "argsrepr": "", "kwargsrepr": ""}
    whole = {
        "body": json.dumps([[{}], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {"delivery_tag": "x", "body_encoding": "utf-8", "delivery_info": {}, "priority": 0},
    }
    return json.dumps({**whole, **changes})


GARBAGE = {
    "not JSON": "hello",
    "binary in base64": "AAECAwQFBgc=",
    "a number": "5",
    "an array": "[1, 2]",
    "null": "null",
    "deeply nested": "[" * 50_000,
    "truncated object": '{"requestId": "x"',
    "broken body": envelope(body="{not json"),
    "body in broken base64": envelope(body="%%%", properties={"body_encoding": "base64", "delivery_info": {}}),
    "unknown body encoding": envelope(properties={"body_encoding": "rot13", "delivery_info": {}}),
    "body is no task body": envelope(body="5"),
    "body is an object": envelope(body="{}"),
    "body of two parts": envelope(body="[[], {}]"),
    "wrong content type": envelope(**{"content-type": "application/x-python-serialize"}),
    "unknown content type": envelope(**{"content-type": "application/x-unknown"}),
    "content encoding is a number": envelope(**{"content-encoding": 5}),
    "unknown task": envelope(headers={"task": "no.such.task", "id": "stranger"}),
    "no task": envelope(headers={}),
    "headers are no object": envelope(headers=[1]),
    "properties are no object": envelope(properties=[]),
    "time limit is no pair": envelope(headers={"task": TASK, "id": "broken", "timelimit": 5}),
    "eta is no time": envelope(headers={"task": TASK, "id": "broken", "eta": "soon"}),
    "eta beyond what SQS keeps": envelope(headers={"task": TASK, "id": "broken", "eta": "2999-01-01T00:00:00+00:00"}),
    "expires is a number": envelope(headers={"task": TASK, "id": "broken", "expires": 5}),
    "negative retries": envelope(headers={"task": TASK, "id": "broken", "retries": -5}),
    "retries is no number": envelope(headers={"task": TASK, "id": "broken", "retries": "1"}),
    "time limit of no time": envelope(headers={"task": TASK, "id": "broken", "timelimit": [0.0, -1]}),
    "stamps": envelope(
        headers={"task": TASK, "id": "broken", "stamped_headers": ["task_id"], "stamps": {"task_id": "x"}}
    ),
    "unhashable stamps": envelope(headers={"task": TASK, "id": "broken", "stamped_headers": [["x"]]}),
    "a header that replaces the context": envelope(headers={"task": TASK, "id": "broken", "called_directly": True}),
    "no request id": envelope(headers={"task": TASK, "id": "a\nb"}),
    "embedded id": envelope(body=json.dumps([[{}], {}, {"id": "another"}])),
    "embedded retries": envelope(body=json.dumps([[{}], {}, {"retries": -5}])),
    "an older form of body": envelope(body=json.dumps({"args": [{}], "kwargs": {}, "retries": -5})),
    "unknown compression": envelope(headers={"task": TASK, "id": "broken", "compression": "x"}),
}


def test_garbage_ends_in_the_dead_letter_queue_whole_and_soon(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """A message that cannot run is never deleted: SQS moves it to the dead-letter queue within seconds, and work continues."""
    with running_worker(tmp_path, settings, records) as worker:
        sent = {queue.send(body): body for body in GARBAGE.values()}
        queue.send(request("good"))
        records.wait_for_end("good")
        wait_until(lambda: queue.depth().dead_letters == len(sent), "all garbage is in the dead-letter queue", 30)
        assert worker.alive
        assert "Unrecoverable error" not in worker.log()
        queue.wait_until_empty()
    assert queue.dead_letters() == sent
    assert [start["id"] for start in records.started()] == ["good"]


@pytest.mark.parametrize("name", ["python", "cpp"])
def test_an_empty_queue_does_not_delay_the_other(
    name: str, tmp_path: Path, settings: Settings, records: Records, app: Celery, aws_url: str
) -> None:
    """During a long poll of 20 s on both queues, a message on either starts at once."""
    patient = settings.model_copy(update={"receive_wait_s": 20})
    either = Queue(settings, aws_url, name)
    delays = []
    with running_worker(tmp_path, patient, records):
        for number in range(5):
            sent_at = time.time()
            either.send(request(f"quick-{number}"))
            records.wait_for_end(f"quick-{number}")
            delays.append(records.started(f"quick-{number}")[0]["at"] - sent_at)
    assert sorted(delays)[2] < 0.5, f"{delays}: a poll of the other queue takes 20 s, kombu's pause after it 1 s"


def test_many_empty_queues_do_not_delay_one(
    tmp_path: Path, settings: Settings, records: Records, proxy: FaultyProxy
) -> None:
    """All twelve empty queues have their long poll open at the same time."""
    names = [f"queue{number}" for number in range(12)]
    patient = settings.model_copy(update={"receive_wait_s": 20})

    def polled() -> set[str]:
        return {poll.queue.removeprefix(settings.queue_prefix) for poll in proxy.requests("ReceiveMessage")}

    with running_worker(tmp_path, patient, records, queues=names):
        wait_until(lambda: polled() == set(names), "every queue is polled", 10)
        assert proxy.count("ReceiveMessage") == len(names)


def test_messages_follow_each_other_without_a_pause(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue
) -> None:
    """A worker that may hold one message polls for the next when the last is done, not at the next tick of a timer."""
    with running_worker(tmp_path, settings, records, queues=["python"], concurrency=1):
        for number in range(20):
            queue.send(request(f"r{number}"))
        wait_until(lambda: len(records.ended()) == 20, "all have run")
    times = [start["at"] for start in records.started()]
    assert times[-1] - times[0] < 6, "kombu's own polls pause for a second after each"


def test_an_acknowledgement_that_fails_costs_a_second_delivery_and_no_worker(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue, proxy: FaultyProxy
) -> None:
    """A message whose deletion SQS refuses is delivered again; the worker logs it and continues."""
    with running_worker(tmp_path, settings, records) as worker:
        proxy.fail("DeleteMessageBatch", status=503, times=sqs.ATTEMPTS)
        queue.send(request("twice"))
        worker.wait_for_log("was not deleted, so it arrives again")
        queue.send(request("other"))
        records.wait_for_end("other")
        wait_until(lambda: len(records.started("twice")) == 2, "the message comes again")
        queue.wait_until_empty()
        assert worker.alive


def test_a_lost_heartbeat_is_made_up_for(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue, proxy: FaultyProxy
) -> None:
    """One heartbeat that SQS refuses does not make a message run twice."""
    with running_worker(tmp_path, settings, records) as worker:
        proxy.fail("ChangeMessageVisibilityBatch", status=403, times=1)
        queue.send(request("long", sleep_s=6))
        records.wait_for_end("long")
        queue.wait_until_empty()
        assert "invisible" in worker.log()
    assert len(records.started("long")) == 1


def test_a_deleted_local_queue_is_created_again(
    tmp_path: Path, settings: Settings, records: Records, app: Celery, queue: Queue
) -> None:
    """A worker and a producer survive the loss of a local queue, as when the local SQS restarts."""
    with running_worker(tmp_path, settings, records, queues=["python"]):
        app.send_task(TASK, [request("before")], task_id="before", queue="python")
        records.wait_for_end("before")
        queue.client.delete_queue(QueueUrl=queue.url)
        app.send_task(TASK, [request("after")], task_id="after", queue="python")
        records.wait_for_end("after")


def test_a_burst_of_server_errors_loses_nothing(
    tmp_path: Path, settings: Settings, records: Records, queue: Queue, proxy: FaultyProxy
) -> None:
    """While every call to SQS fails for five seconds under load, the worker continues, and each message runs."""
    with running_worker(tmp_path, settings, records) as worker:
        ids = [f"r{number}" for number in range(30)]
        for request_id in ids:
            queue.send(request(request_id, sleep_s=0.1))
        wait_until(lambda: len(records.ended()) > 3, "the work has begun")
        proxy.fail(status=503, seconds=5)
        wait_until(lambda: set(records.ended()) == set(ids), "all have run", 60)
        queue.wait_until_empty()
        assert worker.alive
    assert queue.depth().dead_letters == 0
