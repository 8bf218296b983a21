"""A real Celery worker on the SQS transport, with a task that only records that it ran.

The module is both the app that the worker process loads (`celery -A tests.support.transport_worker`) and what tests use to
start it. The rule: what the task did is read from Redis, never from the worker's log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from celery import Celery, bootsteps
from kombu import Queue

from nanogrid.settings import Settings
from nanogrid.sqs import plain_json
from nanogrid.sqs.transport import transport_options
from tests.support.services import wait_until

TASK = "nanogrid.execute_function"
RECORD_URL, RECORD_KEY = "TEST_RECORD_URL", "TEST_RECORD_KEY"


def make_app(settings: Settings, result_url: str | None = None) -> Celery:
    """A Celery app configured like NanoGrid's, for what concerns the transport."""
    app = Celery("transport-test", set_as_current=False)
    app.conf.update(
        broker_url=settings.broker_url,
        broker_transport="nanogrid.sqs.transport:Transport",
        broker_transport_options=transport_options(settings),
        broker_connection_retry_on_startup=True,
        result_backend=result_url,
        task_queues=[Queue(name) for name in os.environ.get("TEST_QUEUES", "python,cpp").split(",")],
        task_default_queue="python",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        accept_content=["json", plain_json.NAME],
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=True,
    )

    @app.task(name=TASK, bind=True, shared=False)
    def execute_function(task: Any, request: dict[str, Any]) -> str:
        return _record(task, request)

    class Restart(bootsteps.StartStopStep):  # type: ignore[misc, unused-ignore]
        """Lets a test break the consumer's connection, as the loss of the monitoring Redis does."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
            client = _record_client()

            def check() -> None:
                if client.getdel(f"{_record_key()}:restart"):
                    raise ConnectionResetError("the test asked for it")

            hub.call_repeatedly(0.1, check)

    app.steps["consumer"].add(Restart)
    return app


def _record_client() -> redis.Redis:
    return redis.Redis.from_url(os.environ[RECORD_URL])


def _record_key() -> str:
    return os.environ[RECORD_KEY]


def _record(task: Any, request: dict[str, Any]) -> str:
    """Record the start, do what the payload says (`sleep_s`, `kill` once), record the end."""
    records, key = _record_client(), _record_key()
    payload = request.get("payload") or {}
    entry = {
        "id": task.request.id,
        "request": request,
        "limits": task.request.timelimit,
        "sent_at_ms": task.request.get("nanogrid_sent_at_ms"),
        "receives": task.request.get("nanogrid_receives"),
        "at": time.time(),
        "pid": os.getpid(),
    }
    records.rpush(f"{key}:started", json.dumps(entry))
    if payload.get("kill") and records.incr(f"{key}:killed:{task.request.id}") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(payload.get("sleep_s", 0))
    records.rpush(f"{key}:ended", task.request.id)
    return str(task.request.id)


class Records:
    """The recorded runs."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self._redis = redis.Redis.from_url(url)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def started(self, request_id: str = "") -> list[dict[str, Any]]:
        """Starts so far, in order, of one id if given."""
        entries: list[Any] = self._redis.lrange(f"{self.key}:started", 0, -1)
        return [entry for entry in map(json.loads, entries) if request_id in ("", entry["id"])]

    def ended(self) -> list[str]:
        """Ids of finished runs, in order."""
        ids: list[Any] = self._redis.lrange(f"{self.key}:ended", 0, -1)
        return [request_id.decode() for request_id in ids]

    def wait_for_end(self, request_id: str, timeout_s: float = 30.0) -> None:
        """Wait until a run of this id has finished."""
        wait_until(lambda: request_id in self.ended(), f"{request_id} has run", timeout_s)

    def restart_consumer(self) -> None:
        """Make the worker lose its connection."""
        self._redis.set(f"{self.key}:restart", 1)


class Worker:
    """A worker process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    def log(self) -> str:
        """The whole log."""
        return self._log.read_text()

    def wait_for_log(self, text: str, timeout_s: float = 30.0) -> None:
        """Wait until the log has this text."""

        def found() -> bool:
            assert self.process.poll() is None, f"the worker ended: {self.log()[-3000:]}"
            return text in self.log()

        wait_until(found, f"the worker logs {text!r}", timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the main process runs."""
        return self.process.poll() is None

    def terminate(self) -> None:
        """Ask for a warm shutdown."""
        self.process.terminate()

    def kill(self) -> None:
        """kill -9 of the main process; its children exit by themselves."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_worker(
    folder: Path,
    settings: Settings,
    records: Records,
    *,
    queues: Sequence[str] = ("python", "cpp"),
    concurrency: int = 2,
    arguments: Sequence[str] = (),
    ready: str = "ready.",
) -> Iterator[Worker]:
    """A worker for a `with` block, ready when the block starts."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    argv = [sys.executable, "-m", "celery", "-A", "tests.support.transport_worker", "worker", "-P", "prefork"]
    argv += [
        "-c",
        str(concurrency),
        "-Q",
        ",".join(queues),
        "-l",
        "INFO",
        "--without-gossip",
        "--without-mingle",
        *arguments,
    ]
    changed = settings.model_dump(mode="json", exclude_unset=True)
    given = {
        f"NANOGRID_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in changed.items()
    }
    own = {RECORD_URL: records.url, RECORD_KEY: records.key, "TEST_QUEUES": ",".join(queues)}
    with log.open("ab") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **given, **own})
    worker = Worker(process, log)
    try:
        worker.wait_for_log(ready)
        yield worker
    finally:
        if worker.alive:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()


app = make_app(Settings()) if RECORD_KEY in os.environ else None
