"""Traces: one per request, from the producer through SQS to the phases of its run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanogrid.settings import Settings
from tests.support.functions import Functions
from tests.support.rig import rig as open_rig
from tests.support.services import Service
from tests.support.worker import ROOT, environment

PHASES = ["fetch", "unpack", "acquire", "run", "collect", "store", "queue"]


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory, moto: Service, redis_server: Service) -> list[dict[str, Any]]:
    """What was traced of two requests: one that says hello, and one that fails in the same container's place."""
    url = f"http://127.0.0.1:{moto.port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        functions = Functions(url)
        with open_rig(
            tmp_path_factory.mktemp("rig"),
            sqs_endpoint_url=url,
            s3_endpoint_url=url,
            result_url=f"redis://127.0.0.1:{redis_server.port}/0",
            create_queues=True,
            queue_prefix="traced-",
            receive_wait_s=1,
            tracing=True,
        ) as here:
            good = functions.request("print('out-secret')", payload="payload-secret", env={"A": "env-secret"})
            bad = functions.request("raise SystemExit(3)", functionId="bad")
            done = subprocess.run(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-m",
                    "tests.support.traced",
                    str(here.owner.address),
                    json.dumps(bad),
                ],
                input=json.dumps({**good, "functionId": "good"}),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                cwd=ROOT,
                env=environment(here.settings),
            )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def named(spans: list[dict[str, Any]], name: str, function: str | None = None) -> dict[str, Any]:
    (found,) = (
        span
        for span in spans
        if span["name"].startswith(name)
        and (function is None or span["attributes"].get("nanogrid.function_id") == function)
    )
    return found


def of_task(spans: list[dict[str, Any]], task: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The phases of one request by name."""
    near = (task["id"], task["parent"])
    return {s["name"]: s for s in spans if s["parent"] in near and s["name"] in PHASES}


def test_one_trace_from_the_producer_to_the_phases(spans: list[dict[str, Any]]) -> None:
    """caller → sent → run → phases, through SQS, all of one trace; what was sent is the parent of what was run."""
    caller = named(spans, "caller")
    assert {span["trace"] for span in spans} == {caller["trace"]}
    for function in ("good", "bad"):
        task = named(spans, "run/nanogrid.execute_function", function)
        (sent,) = (span for span in spans if span["id"] == task["parent"])
        assert (sent["name"], sent["kind"]) == ("apply_async/nanogrid.execute_function", "PRODUCER")
        assert sent["parent"] == caller["id"]
        assert task["kind"] == "CONSUMER"
        phases = of_task(spans, task)
        assert sorted(phases) == sorted(PHASES)
        assert {phase["parent"] for name, phase in phases.items() if name != "queue"} == {task["id"]}
        assert phases["queue"]["parent"] == sent["id"]


def test_phases_lie_where_they_were(spans: list[dict[str, Any]]) -> None:
    """One after the other, within the task's span, the queue before it."""
    task = named(spans, "run/", "good")
    phases = of_task(spans, task)
    order = ["fetch", "unpack", "acquire", "run", "collect"]
    for before, after in itertools.pairwise(order):
        assert phases[before]["end"] == phases[after]["start"]
    assert task["start"] <= phases["fetch"]["start"]
    assert phases["collect"]["end"] <= phases["store"]["start"] <= phases["store"]["end"] <= task["end"]
    assert phases["queue"]["end"] == phases["fetch"]["start"]


def test_spans_tell_what_became_of_it(spans: list[dict[str, Any]]) -> None:
    """Request, function, outcome, start and memory; a function that failed marks its run, and not NanoGrid's task."""
    good, bad = (named(spans, "run/", function) for function in ("good", "bad"))
    for name in ("request_id", "outcome", "start_kind", "peak_memory_bytes", "memory_limit_mb", "container_id"):
        assert good["attributes"][f"nanogrid.{name}"], name
    assert good["attributes"]["faas.coldstart"] is True
    assert (good["attributes"]["nanogrid.outcome"], bad["attributes"]["nanogrid.outcome"]) == ("SUCCEEDED", "FAILED")
    assert (of_task(spans, good)["run"]["status"], good["status"]) == ("UNSET", "UNSET")
    assert (of_task(spans, bad)["run"]["status"], bad["status"]) == ("ERROR", "UNSET")


def test_no_span_holds_a_secret(spans: list[dict[str, Any]]) -> None:
    """Neither payload nor environment nor output."""
    assert "-secret" not in json.dumps(spans)


def test_traces_that_cannot_be_made_are_told_in_one_sentence(tmp_path: Path) -> None:
    """Without the extra, switching traces on is an error that says what to do; without traces nothing is missed."""
    without = "import sys; sys.modules['opentelemetry'] = None\n"
    asks = "from nanogrid import Client, Settings; from nanogrid.errors import ConfigurationError\n"
    submits = "Client(Settings(tracing={})).submit({{'runtime': 'python', 'functionId': 'f', 's3Bucket': 'bbb'}})"
    words = []
    for tracing in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", without + asks + submits.format(tracing)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )
        words.append(done.stderr.splitlines()[-1])
    assert words[0].startswith("nanogrid.errors.ConfigurationError: NANOGRID_TRACING is on, but OpenTelemetry is not")
    assert "pip install 'nanogrid[otel]'" in words[0]
    assert "s3Key: missing" in words[1]


def test_a_worker_that_cannot_trace_does_not_start(tmp_path: Path) -> None:
    """It says why, and that at its start and not at its first request."""
    program = "import sys; sys.modules['opentelemetry'] = None; from celery.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, "-A", "nanogrid", "worker", "-Q", "python"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=environment(Settings(tracing=True, data_dir=tmp_path, sqs_endpoint_url="http://127.0.0.1:9")),
    )
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "CRITICAL" in line]
    assert "the worker cannot start: NANOGRID_TRACING is on, but OpenTelemetry is not installed" in line
    assert "Traceback" not in done.stderr
