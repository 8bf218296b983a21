"""The commands of `celery -A nanogrid`: each works, or names an alternative."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanogrid.connections.sqs import sqs_client
from nanogrid.sqs.queues import resolve
from tests.support.probe import QUICK
from tests.support.services import Service, aws_client, wait_until
from tests.support.worker import CeleryProcess, Grid, Worker, environment, grid

ROOT = Path(__file__).resolve().parents[2]
REQUEST = {"functionId": "f", "runtime": "cpp", "s3Bucket": "none", "s3Key": "none.zip"}
QUEUES = {"python", "python-dlq", "cpp", "cpp-dlq"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, moto: Service, redis_server: Service) -> Iterator[Grid]:
    """A NanoGrid whose worker consumes only the queue python."""
    url = f"redis://127.0.0.1:{redis_server.port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield from opened(tmp_path_factory.mktemp("verbs"), f"http://127.0.0.1:{moto.port}", url)


def opened(folder: Path, aws_url: str, redis_url: str) -> Iterator[Grid]:
    """The NanoGrid, with its queues."""
    with grid(
        folder,
        aws_url=aws_url,
        redis_url=f"{redis_url}/4",
        unique="verbs",
    ) as made:
        for name in ("python", "cpp"):
            resolve(name, made.settings)
        yield made


@pytest.fixture(scope="module")
def worker(here: Grid) -> Iterator[Worker]:
    """Its worker."""
    with here.worker(queues="python") as running:
        yield running


def queues_of(here: Grid) -> set[str]:
    """Names of all queues, without the prefix."""
    urls = aws_client("sqs", here.settings.sqs_endpoint_url).list_queues(QueueNamePrefix=here.settings.queue_prefix)
    return {url.rpartition("/")[2].removeprefix(here.settings.queue_prefix) for url in urls["QueueUrls"]}


def messages(here: Grid, name: str) -> list[dict[str, Any]]:
    """The messages of a queue as Celery envelopes. They are removed."""
    sqs = sqs_client(here.settings)
    url = resolve(name, here.settings, sqs)
    found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
    for message in found:
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return [json.loads(message["Body"]) for message in found]


def test_events_are_those_that_flower_hears(here: Grid, worker: Worker) -> None:
    """`celery events --dump` reads events from Redis, and creates nothing in SQS."""
    listening = CeleryProcess(here, "nanogrid", "events", "--dump", log=here.folder / "events.log")
    try:
        wait_until(lambda: listening.alive() and "heartbeat" in listening.log.read_text(), "a heartbeat is heard")
        sent = here.app.send_task(QUICK, args=[7], queue="python")
        for said in (f"task received: {QUICK}({sent.id})", f"task succeeded: {QUICK}({sent.id})"):
            wait_until(lambda said=said: said in listening.log.read_text(), said)  # type: ignore[misc]
    finally:
        listening.stop()
    assert queues_of(here) == QUEUES


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["amqp", "queue.declare", "made"], "nanogrid status"),
        (["amqp"], "nanogrid status"),
        (["list", "bindings"], "nanogrid status"),
        (["migrate", "sqs://", "redis://127.0.0.1:1"], "aws sqs start-message-move-task"),
        (["logtool", "stats", "/dev/null"], "NANOGRID_LOG_FORMAT=json"),
    ],
)
def test_what_sqs_cannot_do_says_what_to_use(here: Grid, words: list[str], instead: str) -> None:
    done = here.celery(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: `celery {words[0]}` does not work with NanoGrid: ")
    assert instead in done.stderr
    assert done.stderr.count("\n") == 1
    assert queues_of(here) == QUEUES


def test_call_sends_a_request_as_a_producer_does(here: Grid) -> None:
    """The request is checked and sent to its runtime's queue with its time limits; nothing secret is shown."""
    request = {**REQUEST, "requestId": uuid.uuid4().hex, "payload": "secret"}
    done = here.celery("call", "nanogrid.execute_function", "--args", json.dumps([request]))
    assert done.stdout.strip() == request["requestId"], done.stderr
    (message,) = messages(here, "cpp")
    assert None not in message["headers"]["timelimit"]
    assert "secret" not in json.dumps(message["headers"])
    done = here.celery("call", "nanogrid.execute_function", "--kwargs", '{"functionId": "f", "runtime": "ruby"}')
    assert (done.returncode, done.stderr.startswith("Error: runtime: "), "Traceback" in done.stderr) == (1, True, False)
    assert messages(here, "cpp") == []


def test_purge_empties_a_queue(here: Grid) -> None:
    """The command reports how many messages it removed."""
    here.app.send_task(QUICK, args=[7], queue="cpp")
    done = here.celery("purge", "-f", "-Q", "cpp")
    assert (done.returncode, "Purged 1 message" in done.stdout) == (0, True), done.stdout + done.stderr
    assert messages(here, "cpp") == []


def test_report_and_graph_and_result_work(here: Grid, worker: Worker) -> None:
    report = here.celery("report")
    assert (report.returncode, "broker_url" in report.stdout, "test-secret" in report.stdout) == (0, True, False)
    assert worker.name in here.celery("graph", "workers").stdout
    sent = here.app.send_task(QUICK, args=[7], queue="python")
    assert here.celery("result", sent.id).stdout.strip() == "7"


def test_another_apps_commands_are_left_alone(here: Grid, tmp_path: Path) -> None:
    """A producer's process has its own app, and imports NanoGrid beside it."""
    (tmp_path / "another.py").write_text(
        "import celery, nanogrid.tasks\napp = celery.Celery('another', broker='memory://', set_as_current=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery", "-A", "another", "logtool", "stats", "/dev/null"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**environment(here.settings), "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )
    assert (done.returncode, "Task total: 0" in done.stdout) == (0, True), done.stderr


def test_every_verb_has_a_line_in_the_documents() -> None:
    """The commands of this version of Celery, with its plug-ins."""
    program = "from celery.bin.celery import celery; print(*celery.commands)"
    verbs = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    (section,) = [
        part
        for part in (ROOT / "docs" / "operations.md").read_text().split("\n## ")
        if part.startswith("Celery's verbs")
    ]
    assert [verb for verb in verbs if f"| `{verb}" not in section and f", `{verb}" not in section] == []
