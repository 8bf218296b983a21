"""What a canvas of Celery's may make of requests, seen from the worker."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import Any

import pytest
import redis
from celery.result import AsyncResult

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.result import Outcome
from nanogrid.sqs.queues import resolve
from nanogrid.tasks import execute_function
from nanogrid.wire.names import EXECUTE
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker, environment

WAIT_S = 60.0


@pytest.mark.parametrize("name", ["celery.map", "celery.starmap"])
def test_requests_without_ids_of_their_own_are_not_run(
    grid: Grid, worker: Worker, functions: Functions, name: str
) -> None:
    """Whoever sends them past our own producer: the task fails at once with a sentence, and nothing is kept under "None"."""
    requests: list[Any] = [functions.request(programs.HELLO, payload=payload) for payload in ("one", "two")]
    for request in requests:
        del request["requestId"]
    items = requests if name == "celery.map" else [[request] for request in requests]
    request_id = uuid.uuid4().hex
    envelope = {
        "body": json.dumps([[], {"task": dict(execute_function.s()), "it": items}, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": name, "id": request_id, "root_id": request_id},
        "properties": {"body_encoding": "utf-8", "delivery_info": {}, "priority": 0},
    }
    sqs = sqs_client(grid.settings)
    sqs.send_message(QueueUrl=resolve("python", grid.settings, sqs), MessageBody=json.dumps(envelope))
    answer = AsyncResult(request_id, app=grid.app)
    answer.get(timeout=30, propagate=False)
    assert (answer.state, "without a request id" in str(answer.result)) == ("FAILURE", True), answer.result
    with redis.Redis.from_url(grid.settings.result_url, decode_responses=True) as client:
        assert list(client.scan_iter("*None*")) == []
    assert worker.alive()


# -- what comes after a request ---------------------------------------------------------------------------------------

PRODUCER = """
import json, sys
from celery import chain, chord, group
from nanogrid import execute_function
f = json.loads(sys.argv[1])
s, si = execute_function.s, execute_function.si
piped = chain(s(f["square-4"]), s(f["square-value"]), s(**f["square-value-2"])).apply_async()
regardless = chain(s(f["fails"]), si(f["hello"])).apply_async()
stopped = chain(s(f["fails-2"]), s(f["square-value-3"]), si(f["hello-2"])).apply_async()
cancelled = chain(s(f["sleeps"]), si(f["hello-3"]), s(f["square-value-4"])).apply_async()
reduced = chord([s(f["part-4"]), s(f["part-5"])], s(f["sum"])).apply_async()
unreduced = chain(group(s(f["part-6"]), s(f["part-7"])), s(f["sum-2"])).apply_async()
"""
SQUARE_VALUE = "import json, os, sys; n = json.load(sys.stdin)['value']; json.dump(n * n, open(os.environ['NANOGRID_RESULT'], 'w'))"


@pytest.fixture(scope="module")
def sent(grid: Grid, worker: Worker, functions: Functions) -> dict[str, str]:
    """Canvases that a producer has sent: the request ids by name."""
    bodies = {
        "square": programs.SQUARE,
        "part": programs.SQUARE,
        "square-value": SQUARE_VALUE,
        "fails": programs.FAIL,
        "hello": programs.HELLO,
        "sleeps": programs.SLEEP,
        "sum": programs.SUM,
    }
    payloads = {"square-4": 4, "part-4": 4, "part-5": 5, "part-6": 6, "part-7": "no number", "sleeps": 600}
    names = ["square-4", *(f"square-value{end}" for end in ("", "-2", "-3", "-4")), "fails", "fails-2", "sleeps"]
    names += ["hello", "hello-2", "hello-3", "part-4", "part-5", "part-6", "part-7", "sum", "sum-2"]
    wishes = {}
    for name in names:
        program = bodies[name] if name in bodies else bodies[name.rpartition("-")[0]]
        more = {"payload": payloads[name]} if name in payloads else {}
        wishes[name] = {**functions.request(program), "requestId": f"{name}-{uuid.uuid4().hex}", **more}
    subprocess.run(
        [sys.executable, "-c", PRODUCER, json.dumps(wishes)], env=environment(grid.settings), check=True, timeout=60
    )
    return {name: wish["requestId"] for name, wish in wishes.items()}


def test_a_part_of_a_chain_gets_the_result_before_it(sent: dict[str, str], client: Client) -> None:
    """As its payload: the whole ExecutionResult, of which these programs square the value."""
    assert [client.wait(sent[name], WAIT_S).value for name in ("square-4", "square-value", "square-value-2")] == [
        16,
        256,
        65536,
    ]


def test_a_part_that_wants_nothing_of_what_ran_before_runs_after_it_anyway(
    sent: dict[str, str], client: Client
) -> None:
    assert client.wait(sent["fails"], WAIT_S).outcome is Outcome.FAILED
    assert client.wait(sent["hello"], WAIT_S).outcome is Outcome.SUCCEEDED


def test_every_later_part_of_a_chain_that_stops_is_answered(sent: dict[str, str], client: Client) -> None:
    """After one that failed, and after one that was cancelled while it ran."""
    assert client.wait(sent["fails-2"], WAIT_S).outcome is Outcome.FAILED
    for name in ("square-value-3", "hello-2"):
        result = client.wait(sent[name], WAIT_S)
        assert (result.outcome, result.function_id != "") == (Outcome.NOT_RUN, True)
        assert f"{sent['fails-2']} FAILED" in result.stderr
    wait_until(lambda: client.state(sent["sleeps"]) == "STARTED", "it runs")
    assert client.cancel(sent["sleeps"])
    assert client.wait(sent["sleeps"], WAIT_S).outcome is Outcome.CANCELLED
    for name in ("hello-3", "square-value-4"):
        result = client.wait(sent[name], WAIT_S)
        assert result.outcome is Outcome.NOT_RUN
        assert f"the request before it, {sent['sleeps']}, ended CANCELLED" in result.stderr


def test_the_body_of_a_chord_gets_all_results_or_is_answered(sent: dict[str, str], client: Client) -> None:
    assert client.wait(sent["sum"], WAIT_S).value == 41
    result = client.wait(sent["sum-2"], WAIT_S)
    assert result.outcome is Outcome.NOT_RUN
    assert f"{sent['part-7']} FAILED" in result.stderr


def test_a_run_keeps_its_result_whatever_becomes_of_its_callbacks(
    grid: Grid, worker: Worker, functions: Functions, client: Client
) -> None:
    """Sent past our own producer: a callback that is no request, one for a queue that SQS refuses, and a chain of both."""
    request = functions.request(programs.HELLO, payload="world")
    own, later = uuid.uuid4().hex, [uuid.uuid4().hex for _ in range(4)]
    unusable = [
        {"task": EXECUTE, "args": [{"runtime": "ruby"}], "kwargs": {}, "options": {"task_id": later[0]}},
        {"task": "some.task", "args": [], "kwargs": {}, "options": {"task_id": later[1], "queue": "q" * 90}},
    ]
    chain = [
        {"task": EXECUTE, "args": [request], "kwargs": {}, "options": {"task_id": later[3]}, "immutable": True},
        {"task": EXECUTE, "args": [5], "kwargs": {}, "options": {"task_id": later[2]}},
    ]
    request["requestId"] = own
    envelope = {
        "body": json.dumps([[request], {}, {"callbacks": unusable, "chain": chain}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": EXECUTE, "id": own, "root_id": own},
        "properties": {"body_encoding": "utf-8", "delivery_info": {}, "priority": 0},
    }
    sqs = sqs_client(grid.settings)
    sqs.send_message(QueueUrl=resolve("python", grid.settings, sqs), MessageBody=json.dumps(envelope))
    result = client.wait(own, WAIT_S)
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, 'hello "world"\n')
    for part in (later[0], later[2], later[3]):
        assert client.wait(part, WAIT_S).outcome is Outcome.NOT_RUN
    answer = AsyncResult(later[1], app=grid.app)
    answer.get(timeout=WAIT_S, propagate=False)
    assert (answer.state, "could not be sent" in str(answer.result)) == ("FAILURE", True), answer.result
    assert worker.alive()
