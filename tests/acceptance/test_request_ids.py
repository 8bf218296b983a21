"""Which request ids a message may use: no message ends, repeats or shows another request, whatever it contains."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from nanogrid.client import Client, follow
from nanogrid.connections.sqs import sqs_client
from nanogrid.result import Outcome
from nanogrid.sqs.queues import dead_letter_url, resolve
from nanogrid.wire.names import EXECUTE, REDUCE
from tests.acceptance.conftest import OpenGrid
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker

WAIT_S = 60.0
PREFIXES = {"python": "a-", "cpp": "b-"}


@pytest.fixture(scope="module")
def grid(module_grid: OpenGrid) -> Iterator[Grid]:
    """A NanoGrid with two queues for two producers, a and b, in which nothing is delivered twice."""
    with module_grid(request_id_prefixes=PREFIXES, max_receives=1, dead_letter_check_s=1, prewarmed={}) as here:
        yield here


@pytest.fixture(scope="module")
def redis_client(grid: Grid) -> Iterator[redis.Redis]:
    """The result Redis."""
    with redis.Redis.from_url(grid.settings.result_url, decode_responses=True) as client:
        yield client


class Sender:
    """A sender that may use one queue, and nothing else."""

    def __init__(self, grid: Grid, queue: str = "python") -> None:
        self.settings, self.queue = grid.settings, queue
        self.sqs = sqs_client(grid.settings)
        self.url = resolve(queue, grid.settings, self.sqs)

    def send(self, body: dict[str, Any]) -> str:
        """Send a message to the queue and return its SQS id."""
        return str(self.sqs.send_message(QueueUrl=self.url, MessageBody=json.dumps(body))["MessageId"])

    def envelope(
        self, request_id: str, *args: Any, task: str = EXECUTE, embed: dict[str, Any] | None = None, **headers: Any
    ) -> dict[str, Any]:
        """A Celery message with parts that the sender chose."""
        return {
            "body": json.dumps([args, {}, {} if embed is None else embed]),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"lang": "py", "task": task, "id": request_id, "root_id": request_id, **headers},
            "properties": {"body_encoding": "utf-8", "delivery_info": {}, "priority": 0},
        }


@pytest.fixture
def sender(grid: Grid, worker: Worker) -> Sender:
    """Producer a."""
    return Sender(grid)


def is_answered(client: Client, request_id: str) -> bool:
    return client.state(request_id) == "SUCCESS"


def ids_in_stream(grid: Grid) -> list[str]:
    """Request ids of all entries, as a follower sees them."""
    return [found.result.request_id for found in follow(grid.settings, start="all", idle_s=0.0)]


def new(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


def test_a_request_that_names_another_id_than_its_message_is_refused(
    sender: Sender, client: Client, grid: Grid, functions: Functions, worker: Worker, redis_client: redis.Redis
) -> None:
    """Result, entry and log use the message's id, and nothing uses the other one."""
    own, other = new("a-"), new("a-")
    sender.send(sender.envelope(own, functions.request(programs.HELLO, requestId=other)))
    result = client.wait(own, WAIT_S)
    assert (result.request_id, result.outcome) == (own, Outcome.NOT_RUN)
    assert f"requestId: {other!r} is not the id of its message, {own!r}" in result.stderr
    assert ids_in_stream(grid).count(own) == 1
    assert other not in ids_in_stream(grid)
    assert list(redis_client.scan_iter(f"*{other}*")) == []
    assert f"  {other}" not in worker.log.read_text()


@pytest.mark.parametrize("hidden_in", ["embed", "headers"])
def test_nothing_else_in_a_message_says_whose_it_is(
    hidden_in: str, sender: Sender, client: Client, functions: Functions
) -> None:
    """Celery trusts embedded parts and headers more than its own data of a request: none of them shows another request's result."""
    secret = new("a-")
    shown = client.wait(client.submit(functions.request("print('secret')", requestId=secret)), WAIT_S)
    assert shown.stdout == "secret\n"
    own = new("a-")
    parts = {"embed": {"id": secret}} if hidden_in == "embed" else {"properties": {}, "request_stack": 1, "update": 1}
    request = functions.request(programs.HELLO, requestId=own if hidden_in == "headers" else secret)
    sender.send(sender.envelope(own, request, **parts))
    wait_until(lambda: is_answered(client, own), "it has its end")
    result = client.result(own)
    assert (result.outcome, result.stdout) == (Outcome.NOT_RUN, "")
    assert "dead-letter queue" in result.stderr


def test_a_bare_message_cannot_end_a_request_of_another_queue(
    sender: Sender, client: Client, grid: Grid, functions: Functions, redis_client: redis.Redis
) -> None:
    """The message is answered under its own SQS id with its queue's prefix; the other request has its own result."""
    other = new("b-")
    message_id = sender.send(functions.request(programs.HELLO, requestId=other))
    result = client.wait(f"a-{message_id}", WAIT_S)
    assert result.outcome is Outcome.NOT_RUN
    assert f"requestId: {other!r} does not begin with 'a-', which the queue python requires" in result.stderr
    assert list(redis_client.scan_iter(f"*{other}*")) == []
    client.submit(functions.request(programs.CPP, runtime="cpp", requestId=other, payload=4))
    assert client.wait(other, WAIT_S).stdout == "8\n"


FOREIGN = new("b-")
CALLS = {"task": EXECUTE, "args": [{"requestId": FOREIGN}], "kwargs": {}, "options": {}, "immutable": True}
NAMED = {"task": EXECUTE, "args": [{}], "kwargs": {}, "options": {"task_id": FOREIGN}, "immutable": True}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({}, id="its own id"),
        pytest.param({"expires": "2020-01-01T00:00:00+00:00"}, id="expired"),
        pytest.param({"retries": 99}, id="after the last attempt"),
        pytest.param({"own": True, "embed": {"callbacks": [NAMED]}}, id="a callback by task id"),
        pytest.param({"own": True, "embed": {"callbacks": [CALLS]}}, id="a callback by request id"),
        pytest.param({"own": True, "embed": {"chain": [NAMED]}}, id="a chain"),
        pytest.param({"own": True, "embed": {"chord": {**NAMED, "chord_size": 1}}, "group": "g"}, id="a chord"),
        pytest.param({"own": True, "embed": {"errbacks": [{**CALLS, "options": {"link": [NAMED]}}]}}, id="nested"),
        pytest.param({"own": True, "task": "celery.group"}, id="Celery's own task"),
        pytest.param({"own": True, "task": REDUCE, "args": ([FOREIGN], "include")}, id="a part of a reduction"),
    ],
)
def test_a_celery_message_cannot_touch_a_request_of_another_queue(
    message: dict[str, Any],
    sender: Sender,
    client: Client,
    functions: Functions,
    redis_client: redis.Redis,
    worker: Worker,
) -> None:
    """A message that would end, send or read something under the other's id becomes a dead letter; only its own id gets a result."""
    wanted = dict(message)
    named = new("a-") if wanted.pop("own", False) else FOREIGN
    request = functions.request(programs.HELLO, requestId=named)
    message_id = sender.send(sender.envelope(named, request, *wanted.pop("args", ()), **wanted))
    refused = f"message {message_id} in {sender.url.rpartition('/')[2]}-dlq"
    wait_until(lambda: is_answered(client, named) or worker.said(refused), "it has its end")
    if is_answered(client, named):
        assert named != FOREIGN
        assert "dead-letter queue" in client.result(named).stderr
    assert list(redis_client.scan_iter(f"*{FOREIGN}*")) == []


def test_a_dead_letter_is_not_answered_under_an_id_of_another_queue(
    sender: Sender, client: Client, grid: Grid, redis_client: redis.Redis
) -> None:
    """A sender to a dead-letter queue can do no more than a sender to its queue."""
    other, own = new("b-"), new("a-")
    url = str(dead_letter_url(sender.url, sender.sqs))
    bare = str(sender.sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"requestId": other}))["MessageId"])
    for request_id in (other, own):
        body = json.dumps(sender.envelope(request_id, {"functionId": "f"}))
        sender.sqs.send_message(QueueUrl=url, MessageBody=body)
    wait_until(lambda: is_answered(client, own) and is_answered(client, f"a-{bare}"), "what is its own is answered")
    assert list(redis_client.scan_iter(f"*{other}*")) == []


def test_ids_that_are_made_begin_as_their_queue_requires(client: Client, functions: Functions, worker: Worker) -> None:
    """Without a request id, in a map and in a Celery group, no producer needs to know the prefix."""
    nameless = {name: value for name, value in functions.request(programs.SQUARE).items() if name != "requestId"}
    request_id = client.submit({**nameless, "payload": 3})
    assert request_id.startswith("a-")
    assert client.wait(request_id, WAIT_S).value == 9
    reducer = {name: value for name, value in functions.request(programs.SUM).items() if name != "requestId"}
    whole = client.map_reduce(nameless, [1, 2], reducer)
    assert whole.startswith("a-")
    assert client.wait(whole, WAIT_S).value == 5
