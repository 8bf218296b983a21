"""Events and remote control over a real Redis, of a real worker with a real SQS API as its broker."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from nanogrid.celery import make_app
from nanogrid.monitoring.connections import monitor_connection
from nanogrid.monitoring.side_channel import Outbox, OutgoingMessage
from nanogrid.settings import Settings
from tests.support.probe import NAP, QUICK
from tests.support.services import Service, aws_client, free_port, redis_service, running, wait_until
from tests.support.worker import Grid, Worker, grid


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, moto: Service, redis_server: Service
) -> Iterator[tuple[Grid, Worker]]:
    """One worker for the tests that do not change it."""
    folder = tmp_path_factory.mktemp("shared")
    redis_url = f"redis://127.0.0.1:{redis_server.port}"
    with (
        grid(
            folder,
            aws_url=f"http://127.0.0.1:{moto.port}",
            redis_url=f"{redis_url}/2",
            unique="monitoring",
        ) as made,
        made.worker() as worker,
    ):
        yield made, worker


@pytest.fixture
def monitor_redis(tmp_path: Path) -> Iterator[Service]:
    """A Redis only for monitoring, which a test may stop."""
    with running(redis_service(tmp_path)) as service:
        yield service


@pytest.fixture
def own(tmp_path: Path, aws_url: str, redis_url: str, monitor_redis: Service, unique: str) -> Iterator[Grid]:
    """A NanoGrid with separate Redis servers for monitoring and results."""
    with grid(
        tmp_path,
        aws_url=aws_url,
        redis_url=redis_url,
        monitor_url=f"redis://127.0.0.1:{monitor_redis.port}/1",
        unique=unique,
        visibility_timeout_s=6,
        visibility_heartbeat_s=2,
    ) as made:
        yield made


@contextmanager
def events(settings: Settings) -> Iterator[list[dict[str, Any]]]:
    """All events that arrive during the block."""
    seen: list[dict[str, Any]] = []
    ended = threading.Event()
    ready = threading.Event()

    def listen() -> None:
        with monitor_connection(settings) as listening:
            receiver = make_app(settings).events.Receiver(listening, handlers={"*": seen.append})
            with receiver.consumer_context(wakeup=False) as (connection, _, _):
                ready.set()
                while not ended.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(10)
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


# -- from the command line -------------------------------------------------------------------------------------------


def test_ping_and_status_from_the_command_line(shared: tuple[Grid, Worker]) -> None:
    """`celery -A nanogrid inspect ping` and `... status` find the worker although the broker is SQS."""
    made, worker = shared
    ping = made.celery("inspect", "ping", "--json")
    assert json.loads(ping.stdout) == {worker.name: {"ok": "pong"}}, ping.stderr
    status = made.celery("status")
    assert (status.returncode, worker.name in status.stdout) == (0, True), status.stdout + status.stderr


def test_command_line_says_that_redis_is_away(shared: tuple[Grid, Worker]) -> None:
    """If the monitoring Redis does not answer, a command ends soon with one sentence instead of waiting."""
    made, _ = shared
    away = f"redis://127.0.0.1:{free_port()}/0"
    ping = made.celery("inspect", "ping", env={"NANOGRID_MONITOR_URL": away})
    assert ping.returncode != 0
    assert "Connection refused" in ping.stderr
    assert "Traceback" not in ping.stderr


def test_control_raises_when_redis_is_away() -> None:
    """If the monitoring Redis does not answer, a program gets kombu's OperationalError within seconds."""
    app = make_app(Settings(monitor_url=f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(OperationalError, match="refused"):
        app.control.ping()


# -- inspect and control ---------------------------------------------------------------------------------------------


def test_inspect_tells_queues_tasks_and_statistics(shared: tuple[Grid, Worker]) -> None:
    """Inspect shows the consumed queues, the registered tasks and the pool of the worker."""
    made, worker = shared
    inspect = made.app.control.inspect(timeout=5.0, destination=[worker.name])
    assert {queue["name"] for queue in inspect.active_queues()[worker.name]} == {"python", "cpp"}
    assert {"nanogrid.execute_function", QUICK} <= set(inspect.registered()[worker.name])
    assert len(inspect.stats()[worker.name]["pool"]["processes"]) == 2


def test_inspect_shows_no_credentials(shared: tuple[Grid, Worker]) -> None:
    """Neither statistics nor configuration, which any client of the monitoring Redis can request, contain the AWS secret."""
    made, worker = shared
    inspect = made.app.control.inspect(timeout=5.0, destination=[worker.name])
    answers = json.dumps([inspect.stats(), inspect.conf()])
    assert worker.name in answers
    assert "test-secret" not in answers


def test_inspect_shows_a_running_task(shared: tuple[Grid, Worker], tmp_path: Path) -> None:
    """Inspect lists a task while it runs, with its arguments."""
    made, worker = shared
    log = tmp_path / "log"
    napping = made.app.send_task(NAP, (3, str(log), "seen"))
    wait_until(lambda: lines(log), "the task runs")
    active = made.app.control.inspect(timeout=5.0, destination=[worker.name]).active()[worker.name]
    assert [task["id"] for task in active] == [napping.id]
    assert napping.get(timeout=20) == "seen"


def test_pool_grows_and_shrinks(shared: tuple[Grid, Worker]) -> None:
    """The number of children follows pool_grow and pool_shrink."""
    made, worker = shared
    control, there = made.app.control, [worker.name]

    def children() -> int:
        return len(control.inspect(timeout=5.0, destination=there).stats()[worker.name]["pool"]["processes"])

    control.pool_grow(1, destination=there)
    wait_until(lambda: children() == 3, "a child has come")  # the pool checks its children every 5 s
    control.pool_shrink(1, destination=there)
    wait_until(lambda: children() == 2, "a child has gone")


def test_revoked_before_it_runs(shared: tuple[Grid, Worker], tmp_path: Path) -> None:
    """A task that was revoked while it waited never starts, and has its final result."""
    made, _ = shared
    log = tmp_path / "log"
    busy = [made.app.send_task(NAP, (2, str(log), f"busy{number}")) for number in range(2)]
    wait_until(lambda: len(lines(log)) == 2, "both children are busy")
    late = made.app.send_task(NAP, (0, str(log), "late"))
    made.app.control.revoke(late.id, reply=True, timeout=5.0)
    assert [result.get(timeout=20) for result in busy] == ["busy0", "busy1"]
    assert late.get(timeout=20)["outcome"] == "CANCELLED"
    assert "late" not in lines(log)


def test_revoked_and_terminated_while_it_runs(shared: tuple[Grid, Worker], tmp_path: Path) -> None:
    """Revoke with terminate ends a running task within two seconds, and the worker continues."""
    made, _ = shared
    log = tmp_path / "log"
    long = made.app.send_task(NAP, (60, str(log), "long"))
    wait_until(lambda: lines(log), "the task runs")
    made.app.control.revoke(long.id, terminate=True)
    wait_until(lambda: long.state == "REVOKED", "the task is ended", timeout_s=2)
    assert made.app.send_task(QUICK, (7,)).get(timeout=20) == 7


def test_remote_control_leaves_nothing_in_sqs(shared: tuple[Grid, Worker], aws_url: str) -> None:
    """Commands and replies create no queue in SQS: only the runtimes' queues and their dead-letter queues exist."""
    made, _ = shared
    assert made.app.control.ping(timeout=1.0)
    urls = aws_client("sqs", aws_url).list_queues(QueueNamePrefix=made.settings.queue_prefix)["QueueUrls"]
    names = {url.rpartition("/")[2].removeprefix(made.settings.queue_prefix) for url in urls}
    assert names == {"python", "python-dlq", "cpp", "cpp-dlq"}


# -- events ----------------------------------------------------------------------------------------------------------


def test_events_tell_the_life_of_a_task(shared: tuple[Grid, Worker]) -> None:
    """A task is seen as received, started and succeeded, with its arguments and its run time."""
    made, _ = shared
    with events(made.settings) as seen:
        sent = made.app.send_task(QUICK, (5,), argsrepr="(5,)")
        sent.get(timeout=20)

        def life() -> list[dict[str, Any]]:
            return sorted((event for event in seen if event.get("uuid") == sent.id), key=lambda event: event["clock"])

        wait_until(lambda: len(life()) == 3, "three events")
    received, started, succeeded = life()
    assert [event["type"] for event in life()] == ["task-received", "task-started", "task-succeeded"]
    assert (received["name"], received["args"]) == (QUICK, "(5,)")
    assert started["hostname"] == "w1@test"
    assert succeeded["runtime"] < 5


def test_a_worker_that_ends_says_goodbye(own: Grid) -> None:
    """The event `worker-offline` is still sent when a worker shuts down."""
    with events(own.settings) as seen:
        with own.worker() as worker:
            worker.stop()
        wait_until(lambda: any(event["type"] == "worker-offline" for event in seen), "the goodbye")


# -- outages of the monitoring Redis ---------------------------------------------------------------------------------


def test_worker_starts_without_the_monitoring_redis(own: Grid, monitor_redis: Service) -> None:
    """A worker consumes tasks although the monitoring Redis is down when it starts, and becomes visible once Redis is up."""
    monitor_redis.stop()
    with own.worker(reachable=False) as worker:
        assert own.app.send_task(QUICK, (1,)).get(timeout=20) == 1
        monitor_redis.start()
        wait_until(worker.answers, "the worker answers")


def test_hung_monitoring_redis_delays_no_task(own: Grid, monitor_redis: Service) -> None:
    """While the monitoring Redis accepts connections and does not answer, tasks start and end as usual."""
    with own.worker() as worker:
        own.app.send_task(QUICK, (0,)).get(timeout=20)
        assert monitor_redis.process is not None
        os.kill(monitor_redis.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            numbers = [own.app.send_task(QUICK, (number,)).get(timeout=20) for number in range(20)]
            took_s = time.monotonic() - started
        finally:
            os.kill(monitor_redis.process.pid, signal.SIGCONT)
        assert numbers == list(range(20))
        assert took_s < 5  # one event that waited for Redis in the event loop would take 5 s by itself
        wait_until(worker.answers, "the worker answers again")


def test_restart_of_redis_under_load(tmp_path: Path, aws_url: str, monitor_redis: Service, unique: str) -> None:
    """One Redis for results and monitoring is killed and restarted under load: each task runs once and has its result."""
    redis_url = f"redis://127.0.0.1:{monitor_redis.port}"
    log = tmp_path / "log"
    with (
        grid(
            tmp_path,
            aws_url=aws_url,
            redis_url=f"{redis_url}/0",
            unique=unique,
            visibility_timeout_s=4,
            visibility_heartbeat_s=1,
        ) as made,
        made.worker() as worker,
    ):
        marks = [f"mark{number}" for number in range(30)]
        sent = [made.app.send_task(NAP, (0.1, str(log), mark)) for mark in marks]
        wait_until(lambda: len(lines(log)) >= 6, "some tasks ran")
        monitor_redis.kill()
        wait_until(lambda: worker.said("tasks continue"), "the outage was noticed")
        down_until = time.monotonic() + 6  # longer than the visibility timeout, so held messages must be renewed
        wait_until(lambda: time.monotonic() > down_until, "the outage lasted")
        monitor_redis.start()
        wait_until(worker.answers, "the worker answers again", timeout_s=15)
        assert [result.get(timeout=60) for result in sent] == marks
        assert Counter(lines(log)) == Counter(marks)
        assert (
            worker.log.read_text().count("tasks continue") <= 4
        )  # one line per outage and direction, not one per attempt
        assert "Connection to broker lost" not in worker.log.read_text()


# -- the outbox ------------------------------------------------------------------------------------------------------


def outgoing(body: object) -> OutgoingMessage:
    return OutgoingMessage(body, None, "", {})  # nothing is published here


def test_outbox_drops_the_oldest() -> None:
    """A full outbox drops its oldest message and counts it, instead of growing or making the event loop wait."""
    outbox = Outbox(limit=2)
    for number in range(3):
        outbox.put(outgoing(number))
    assert outbox.dropped == 1
    assert outbox.next_batch() == [outgoing(1)]


def test_outbox_keeps_a_message_until_it_was_sent() -> None:
    """A message that could not be sent is the first one again, and a closed outbox ends only when it is empty."""
    outbox = Outbox()
    outbox.put(outgoing(1))
    outbox.close()
    batch = outbox.next_batch()
    assert outbox.next_batch() == batch == [outgoing(1)]
    outbox.sent(batch)
    assert outbox.next_batch() == []


def test_lists_of_events_leave_the_outbox_together() -> None:
    """Lists of events that follow each other are one batch, in order; a reply ends it, and keeps nothing waiting."""
    outbox = Outbox(gather_s=3600)
    for body in ([1], [2, 3], "reply", [4]):
        outbox.put(outgoing(body))
    batch = outbox.next_batch()
    assert [message.body for message in batch] == [[1], [2, 3]]
    outbox.sent(batch)
    batch = outbox.next_batch()
    assert [message.body for message in batch] == ["reply"]
    outbox.sent(batch)
    outbox.close()
    assert [message.body for message in outbox.next_batch()] == [[4]]


def test_what_is_dropped_while_a_batch_is_sent_is_not_removed_twice() -> None:
    """While two lists are being sent, a full outbox drops the first of them: the other one leaves it, and no later one."""
    outbox = Outbox(limit=2, gather_s=0)
    outbox.put(outgoing([1]))
    outbox.put(outgoing([2]))
    batch = outbox.next_batch()
    outbox.put(outgoing([3]))
    outbox.sent(batch)
    assert [message.body for message in outbox.next_batch()] == [[3]]
