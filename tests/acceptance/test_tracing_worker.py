"""Traces of a real worker and a real producer, sent by OTLP to a collector."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.sqs.queues import resolve
from tests.acceptance.conftest import OpenGrid, assert_nothing_left
from tests.support import functions as programs
from tests.support.collector import Collector, collector
from tests.support.functions import Functions
from tests.support.worker import ROOT, Grid, environment

WAIT_S = 60.0
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
GHOST = {"image": "nanogrid/no-such-image:1", "command": ["run"], "requiredFile": "main.py", "queue": "python"}
PRODUCE = "import json, sys; from nanogrid import Client; print(Client().submit(json.load(sys.stdin)))"


@pytest.fixture(scope="module")
def grid(module_grid: OpenGrid) -> Iterator[Grid]:
    """A NanoGrid that traces."""
    with module_grid(tracing=True, runtimes={"ghost": GHOST}, max_attempts=2, retry_backoff_s=0.2) as here:
        yield here
        assert_nothing_left(here.settings)


@pytest.fixture(scope="module")
def collected(grid: Grid, functions: Functions) -> Iterator[dict[str, Any]]:
    """What the collector had when a worker had run three requests and had ended: nothing was sent before its children's end."""
    with collector() as kept:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": kept.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        client = Client(grid.settings.model_copy(update={"tracing": False}))  # of this process: only reads results
        with grid.worker(app="nanogrid", queues="python", env=otel):
            ours = produce(grid, otel, functions.request(programs.HELLO, payload="payload-secret"))
            retried = produce(grid, otel, functions.request(programs.HELLO, runtime="ghost"))
            bare = functions.request(programs.HELLO)
            sqs_client(grid.settings).send_message(
                QueueUrl=resolve("python", grid.settings),
                MessageBody=json.dumps(bare),
                MessageAttributes={
                    "traceparent": {"DataType": "String", "StringValue": f"00-{TRACE}-{SPAN}-01"},
                    "other": {"DataType": "String", "StringValue": "of no interest"},
                },
            )
            for request_id in (ours, retried, bare["requestId"]):
                client.wait(request_id, WAIT_S)
        yield {"kept": kept, "ours": ours, "retried": retried, "bare": bare["requestId"]}


def produce(grid: Grid, otel: dict[str, str], request: dict[str, Any]) -> str:
    """Send a request from a process of its own, whose spans leave when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", PRODUCE],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
        env={**environment(grid.settings), **otel, "OTEL_SERVICE_NAME": "producer"},
    )
    return done.stdout.strip()


def runs_of(kept: Collector, request_id: str) -> list[dict[str, Any]]:
    """The spans of a request's attempts."""
    name = "run/nanogrid.execute_function"
    return [s for s in kept.spans if s["name"] == name and s["attributes"]["messaging.message.id"] == request_id]


def test_producer_and_worker_share_a_trace(collected: dict[str, Any]) -> None:
    """Two processes, two services, one trace: what the producer sent is the parent of what the worker's child ran."""
    kept = collected["kept"]
    (run,) = runs_of(kept, collected["ours"])
    (sent,) = (span for span in kept.spans if span["id"] == run["parent"])
    assert (sent["service"], run["service"]) == ("producer", "nanogrid")
    assert sent["trace"] == run["trace"]
    phases = [span["name"] for span in kept.spans if span["parent"] == run["id"]]
    assert {"fetch", "acquire", "run", "collect", "store"} <= set(phases)
    assert run["attributes"]["nanogrid.outcome"] == "SUCCEEDED"


def test_every_attempt_is_in_the_trace(collected: dict[str, Any]) -> None:
    """A retry is sent by the attempt before it; the last one says that NanoGrid gave up."""
    kept = collected["kept"]
    runs = runs_of(kept, collected["retried"])
    assert len(runs) == 2
    assert len({run["trace"] for run in runs}) == 1
    (last,) = (run for run in runs if run["failed"])
    (first,) = (run for run in runs if not run["failed"])
    (resent,) = (span for span in kept.spans if span["id"] == last["parent"])
    assert (resent["service"], resent["parent"]) == ("nanogrid", first["id"])
    assert "celery.retry.reason" in first["attributes"]
    assert last["attributes"]["nanogrid.outcome"] == "NOT_RUN"


def test_a_bare_message_brings_its_trace(collected: dict[str, Any]) -> None:
    """A sender of any language puts `traceparent` beside its message, as an SQS message attribute."""
    (run,) = runs_of(collected["kept"], collected["bare"])
    assert (run["trace"], run["parent"]) == (TRACE, SPAN)


def test_no_secret_is_exported(collected: dict[str, Any]) -> None:
    """In no byte of what was sent."""
    assert collected["kept"].bodies
    assert b"-secret" not in b"".join(collected["kept"].bodies)
