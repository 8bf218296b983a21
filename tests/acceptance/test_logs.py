"""A worker's log, as JSON and as text: one line per stage of a request, and no secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.result import Outcome
from nanogrid.sqs.queues import resolve
from tests.acceptance.conftest import OpenGrid, assert_nothing_left
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker

WAIT_S = 60.0
FIXED = ["time", "level", "stage", "request", "function", "worker", "attempt"]
GHOST = {"image": "nanogrid/no-such-image:1", "command": ["run"], "requiredFile": "main.py", "queue": "python"}


@pytest.fixture(scope="module")
def grid(module_grid: OpenGrid) -> Iterator[Grid]:
    """A NanoGrid whose worker writes JSON, and whose Redis takes any password."""
    with module_grid(
        redis_login="default:redis-secret@",
        log_format="json",
        runtimes={"ghost": GHOST},
        max_attempts=2,
        retry_backoff_s=0.2,
    ) as here:
        yield here
        assert_nothing_left(here.settings)


@pytest.fixture(scope="module")
def worker(grid: Grid) -> Iterator[Worker]:
    """A worker for python functions."""
    with grid.worker(app="nanogrid", queues="python") as running:
        yield running


def lines_of(worker: Worker) -> list[dict[str, Any]]:
    """Return every line of the log. Fails if a line is not a JSON object."""
    lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


def way_of(worker: Worker, request_id: str) -> list[dict[str, Any]]:
    """Return the lines about a request, once its last one is written."""

    def ended() -> bool:
        return any(line.get("stage") == "finished" and line["request"] == request_id for line in lines_of(worker))

    wait_until(ended, f"the last line about {request_id}")
    return [line for line in lines_of(worker) if line.get("request") == request_id]


def stages_of(lines: list[dict[str, Any]]) -> list[str]:
    return [line["stage"] for line in lines if "stage" in line]


def test_a_request_has_one_line_per_stage(client: Client, functions: Functions, worker: Worker) -> None:
    """Received, code, container, started, finished: in this order, once each, with the same fields first."""
    request = functions.request(programs.HELLO, functionId="greet", memoryMb=128)
    client.wait(client.submit(request), WAIT_S)
    again = {**request, "requestId": f"{request['requestId']}-2"}
    result = client.wait(client.submit(again), WAIT_S)
    lines = way_of(worker, again["requestId"])
    assert stages_of(lines) == ["received", "code", "container", "started", "finished"]
    assert len(lines) == 5
    for line in lines:
        assert list(line)[: len(FIXED)] == FIXED
        assert (line["function"], line["worker"], line["attempt"], line["level"]) == ("greet", worker.name, 1, "INFO")
    received, code, container, started, finished = lines
    assert (received["queue"], received["deliveries"]) == ("python", 1)
    assert (code["cached"], code["buildMillis"]) == (True, None)
    assert container["startKind"] == finished["startKind"] == "warm"
    assert (started["memoryMb"], started["timeoutMs"]) == (128, 10_000)
    told = ("outcome", "exitCode", "durationMillis", "peakMemoryBytes", "memoryLimitMb", "cpuMillis", "phases")
    assert {name: finished[name] for name in told} == {name: result.to_wire()[name] for name in told}


def test_the_first_run_tells_of_fetched_code(client: Client, functions: Functions, worker: Worker) -> None:
    """Lines that the code store logs meanwhile carry the request id, too."""
    request_id = client.submit(functions.request("print('never seen before')"))
    client.wait(request_id, WAIT_S)
    lines = way_of(worker, request_id)
    (code,) = (line for line in lines if line.get("stage") == "code")
    assert code["cached"] is False
    assert [line["logger"] for line in lines if "logger" in line] == ["nanogrid.execution.code"]


def test_a_failing_function_is_no_trouble_of_nanogrids(client: Client, functions: Functions, worker: Worker) -> None:
    """Its outcome is logged at the same level as all others."""
    request_id = client.submit(functions.request(programs.FAIL))
    client.wait(request_id, WAIT_S)
    finished = way_of(worker, request_id)[-1]
    assert (finished["level"], finished["outcome"], finished["exitCode"]) == ("INFO", "FAILED", 3)
    assert "reason" not in finished


def test_a_refused_request_is_received_and_finished(
    grid: Grid, client: Client, functions: Functions, worker: Worker
) -> None:
    """Two lines; the second is a warning with the reason, without the values of its environment."""
    bare = functions.request(programs.HELLO, env={"TOKEN": ["refused-secret"]})
    sqs_client(grid.settings).send_message(QueueUrl=resolve("python", grid.settings), MessageBody=json.dumps(bare))
    lines = way_of(worker, bare["requestId"])
    assert stages_of(lines) == ["received", "finished"]
    assert len(lines) == 2
    assert (lines[1]["level"], lines[1]["outcome"]) == ("WARNING", "NOT_RUN")
    assert lines[1]["reason"].startswith("env.TOKEN: an array is not accepted")


def test_a_retry_is_told_and_counted(client: Client, functions: Functions, worker: Worker) -> None:
    """Each failed attempt is a warning, and the last line reports that NanoGrid gave up."""
    request_id = client.submit(functions.request(programs.HELLO, runtime="ghost"))
    client.wait(request_id, WAIT_S)
    lines = [line for line in way_of(worker, request_id) if "stage" in line]
    assert [(line["stage"], line["attempt"], line["level"]) for line in lines] == [
        ("received", 1, "INFO"),
        ("code", 1, "INFO"),
        ("retrying", 1, "WARNING"),
        ("received", 2, "INFO"),
        ("code", 2, "INFO"),
        ("finished", 2, "WARNING"),
    ]
    assert "nanogrid/no-such-image:1" in lines[2]["trouble"]
    assert lines[-1]["reason"].startswith("NanoGrid gave up after 2 attempts")


def test_a_cancelled_run_is_finished_once(client: Client, functions: Functions, worker: Worker) -> None:
    """The main process reports the end of the run that it killed."""
    request_id = client.submit(functions.request(programs.SLEEP, timeoutMs=60_000))
    wait_until(lambda: "started" in stages_of(lines_of_request(worker, request_id)), "the function runs")
    assert client.cancel(request_id)
    assert client.wait(request_id, WAIT_S).outcome is Outcome.CANCELLED
    lines = way_of(worker, request_id)
    assert stages_of(lines) == ["received", "code", "container", "started", "finished"]
    assert (lines[-1]["outcome"], lines[-1]["reason"]) == ("CANCELLED", "cancelled while it ran")


def lines_of_request(worker: Worker, request_id: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(worker) if line.get("request") == request_id]


def test_a_second_delivery_is_answered(grid: Grid, client: Client, functions: Functions, worker: Worker) -> None:
    """A message whose request has a result is received, but not finished a second time."""
    request = functions.request(programs.HELLO)
    client.wait(client.submit(request), WAIT_S)
    way_of(worker, request["requestId"])
    sqs_client(grid.settings).send_message(QueueUrl=resolve("python", grid.settings), MessageBody=json.dumps(request))
    wait_until(lambda: "answered" in stages_of(lines_of_request(worker, request["requestId"])), "it was answered")
    lines = way_of(worker, request["requestId"])
    assert stages_of(lines)[-3:] == ["finished", "received", "answered"]


def test_no_secret_is_in_any_line(grid: Grid, client: Client, functions: Functions, worker: Worker) -> None:
    """Payload, environment, output, value and Redis' password; also for a failed request, and for an unknown task."""
    loud = "import os, sys; print('out-secret'); open(os.environ['NANOGRID_RESULT'], 'w').write('\"value-secret\"')"
    for program in (loud, f"{loud}; sys.exit('err-secret')", f"{loud}; print('x' * 2**21)"):
        request = functions.request(program, payload={"key": "payload-secret"}, env={"TOKEN": "env-secret"})
        client.wait(client.submit(request), WAIT_S)
    grid.app.send_task("no.such.task", ("unknown-secret",), queue="python")
    wait_until(lambda: worker.said("unknown task"), "the unknown task came")
    text = worker.log.read_text()
    assert text.count("-secret") == 0
    assert "Task nanogrid." not in text  # Celery's own lines


def test_text_is_for_people(
    grid: Grid, functions: Functions, tmp_path_factory: pytest.TempPathFactory, worker: Worker
) -> None:
    """The same five lines as text, each starting with stage, request and function."""
    worker.stop()  # its containers are removed before the next worker starts
    text = Grid(grid.settings.model_copy(update={"log_format": "text", "queue_prefix": "text-"}), grid.folder)
    client = Client(text.settings)
    request = functions.request(programs.HELLO, payload="payload-secret")
    with text.worker("w2@test", app="nanogrid", queues="python") as reader:
        client.wait(client.submit(request), WAIT_S)
        wait_until(lambda: reader.said("finished "), "the last line")
        log: Path = reader.log
    text.close()
    said = [line.partition("] ")[2].split() for line in log.read_text().splitlines() if request["requestId"] in line]
    told = [words for words in said if words[1] == request["requestId"]]
    assert [words[0] for words in told] == ["received", "code", "container", "started", "finished"]
    assert {words[2] for words in told} == {"test"}
    assert "SUCCEEDED," in told[-1]
    assert "-secret" not in log.read_text()
    assert "Task nanogrid." not in log.read_text()
