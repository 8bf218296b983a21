"""Whatever breaks under a request, the request ends with the right result, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.execution.container.engine import Engine
from nanogrid.result import Outcome, StartKind
from nanogrid.results.claims import Claims
from nanogrid.results.mapping import PartFailure
from nanogrid.settings import Settings
from nanogrid.sqs.queues import depths, resolve
from tests.acceptance.conftest import assert_nothing_left, open_grid
from tests.support import functions as programs
from tests.support.engine_proxy import EngineProxy
from tests.support.faulty_proxy import FaultyProxy
from tests.support.functions import Functions
from tests.support.pool import containers_of, exists
from tests.support.services import Service, wait_until
from tests.support.worker import Grid, Worker

WAIT_S = 90.0

OpenGrid = Callable[..., AbstractContextManager[Grid]]


@pytest.fixture
def make_grid(tmp_path: Path, aws_url: str, redis_url: str, unique: str) -> OpenGrid:
    """Opens a NanoGrid with the test's settings; nothing may be left when it closes."""

    @contextmanager
    def make(**changes: Any) -> Iterator[Grid]:
        options: dict[str, Any] = {
            "aws_url": aws_url,
            "redis_url": redis_url,
            "visibility_timeout_s": 4,
            "visibility_heartbeat_s": 1.5,
            "claim_ttl_s": 2,
            "retry_backoff_s": 0.2,
            "retry_backoff_max_s": 0.5,
            "reap_interval_s": 1,
            "dead_letter_check_s": 1,
            "max_receives": 3,
            **changes,
        }
        with open_grid(tmp_path, unique=unique, **options) as here:
            yield here
            assert_nothing_left(here.settings)

    return make


@pytest.fixture
def engine(data_dir: Path) -> Iterator[Engine]:
    """The engine, to inspect containers."""
    with closing(Engine(Settings(data_dir=data_dir))) as here:
        yield here


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The grid creates its own data folder."""
    return tmp_path / "elsewhere"


def children(worker: Worker) -> list[psutil.Process]:
    return psutil.Process(worker.process.pid).children()


def busy_child(worker: Worker, grid: Grid, request_id: str) -> int:
    """The pid of the child that runs a request, as the worker reports it."""
    active = grid.app.control.inspect(destination=[worker.name], timeout=5).active() or {}
    return next(int(task["worker_pid"]) for tasks in active.values() for task in tasks if task["id"] == request_id)


def runs_of(grid: Grid, request_id: str) -> list[str]:
    return containers_of(grid.settings.data_dir, request_id)


def await_container(grid: Grid, request_id: str) -> str:
    """The id of the container that runs a request, as soon as it exists."""
    wait_until(lambda: runs_of(grid, request_id), "the container runs")
    return runs_of(grid, request_id)[0]


def test_kill_9_of_a_child(make_grid: OpenGrid, functions: Functions, engine: Engine) -> None:
    """The message is redelivered, the new run stores the result, and the first container is removed."""
    with make_grid() as grid, grid.worker(app="nanogrid") as worker:
        client = Client(grid.settings)
        request_id = client.submit(functions.request(programs.SLEEP, payload=4, timeoutMs=30_000))
        first = await_container(grid, request_id)
        os.kill(busy_child(worker, grid, request_id), signal.SIGKILL)
        result = client.wait(request_id, WAIT_S)
        assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, "up\n")
        assert result.container_id != first
        wait_until(lambda: not exists(engine, first, grid.settings), "the first container is gone", 10)


def test_kill_9_of_the_worker(make_grid: OpenGrid, functions: Functions, engine: Engine) -> None:
    """The next worker removes the orphans and runs the lost requests; the dead worker's children died with it."""
    with make_grid() as grid:
        client = Client(grid.settings)
        doomed = Worker(grid, "doomed@test", "nanogrid", "python,cpp")
        wait_until(lambda: doomed.said("doomed@test ready."), "the first worker is ready")
        request_id = client.submit(functions.request(programs.SLEEP, payload=2, timeoutMs=30_000))
        first = await_container(grid, request_id)
        orphans = children(doomed)
        doomed.process.kill()
        doomed.process.wait()
        _, alive = psutil.wait_procs(orphans, timeout=5)
        assert not alive
        with grid.worker("second@test", app="nanogrid"):
            wait_until(lambda: not exists(engine, first, grid.settings), "the orphan is gone")
            result = client.wait(request_id, WAIT_S)
            assert (result.outcome, result.worker) == (Outcome.SUCCEEDED, "second@test")


def test_kill_9_between_result_and_deletion(make_grid: OpenGrid, functions: Functions, moto: Service) -> None:
    """Results are stored and their messages not yet deleted: these arrive again, run nothing, and are deleted."""
    with FaultyProxy(moto.port) as proxy, make_grid(sqs_endpoint_url=proxy.url) as grid:
        client = Client(grid.settings)
        proxy.hang("DeleteMessageBatch")
        with grid.worker("first@test", app="nanogrid") as first:
            ids = client.submit_many(functions.request(programs.HELLO) for _ in range(3))
            results = [client.wait(request_id, WAIT_S) for request_id in ids]
            wait_until(lambda: proxy.count("DeleteMessageBatch"), "the messages are about to be deleted")
            first.process.kill()
            first.process.wait()
        proxy.heal()
        with grid.worker("second@test", app="nanogrid") as second:
            said = "the request had a result before"
            wait_until(lambda: second.log.read_text().count(said) == 3, "all three have arrived again")
            wait_until(lambda: depths(["python"], grid.settings)[0].in_flight == 0, "their messages are deleted")
        assert [client.result(request_id) for request_id in ids] == results
        assert depths(["python"], grid.settings)[0].visible == 0


def test_a_duplicate_that_waits_in_vain(make_grid: OpenGrid, functions: Functions) -> None:
    """A delivery whose request runs elsewhere stores nothing, even if its own time limit comes first: it is redelivered."""
    with make_grid(overhead_s=2, hard_limit_grace_s=2) as grid, grid.worker(app="nanogrid") as worker:
        client, claims = Client(grid.settings), Claims(grid.settings)
        request = functions.request(programs.HELLO, timeoutMs=1000)
        assert claims.take(request["requestId"], "elsewhere")
        with claims.hold(request["requestId"], "elsewhere"):
            client.submit(request)
            wait_until(lambda: worker.said("still running elsewhere"), "the first delivery has given up")
        assert client.wait(request["requestId"], WAIT_S).outcome is Outcome.SUCCEEDED


def test_sigterm_during_a_run(make_grid: OpenGrid, functions: Functions, engine: Engine) -> None:
    """SIGTERM drains: the running function ends by itself, its result is stored, then the worker exits."""
    with make_grid() as grid:
        client = Client(grid.settings)
        with grid.worker(app="nanogrid") as worker:
            request_id = client.submit(functions.request(programs.SLEEP, payload=2, timeoutMs=30_000))
            await_container(grid, request_id)
            worker.process.terminate()
            worker.process.wait(30)
        assert client.result(request_id).outcome is Outcome.SUCCEEDED


def test_a_child_that_hangs(make_grid: OpenGrid, functions: Functions, engine: Engine) -> None:
    """Celery's hard limit kills a child that does not end by itself, and the result reports it."""
    with make_grid(overhead_s=3, hard_limit_grace_s=1) as grid, grid.worker(app="nanogrid") as worker:
        client = Client(grid.settings)
        request_id = client.submit(functions.request(programs.SLEEP, timeoutMs=20_000, payload=15))
        container = await_container(grid, request_id)
        os.kill(busy_child(worker, grid, request_id), signal.SIGSTOP)
        result = client.wait(request_id, WAIT_S)
        assert result.outcome is Outcome.NOT_RUN
        assert "hard time limit of 24 s" in result.stderr
        wait_until(lambda: not exists(engine, container, grid.settings), "the container is gone", 10)


def test_a_request_that_kills_every_child(make_grid: OpenGrid, functions: Functions, engine: Engine) -> None:
    """After the queue's last delivery the message is in the dead-letter queue, and its result reports it."""
    with make_grid() as grid, grid.worker(app="nanogrid") as worker:
        client = Client(grid.settings)
        request_id = client.submit(functions.request(programs.SLEEP, timeoutMs=30_000))
        killed: set[str] = set()

        def kill_the_next() -> bool:
            for container in set(runs_of(grid, request_id)) - killed:
                killed.add(container)
                os.kill(busy_child(worker, grid, request_id), signal.SIGKILL)
            return len(killed) == grid.settings.max_receives

        wait_until(kill_the_next, "every delivery was killed", WAIT_S)
        result = client.wait(request_id, WAIT_S)
        assert result.outcome is Outcome.NOT_RUN
        assert "dead-letter queue" in result.stderr
        wait_until(lambda: depths(["python"], grid.settings)[0].dead_letters == 1, "it stays in the dead-letter queue")


def test_a_dead_part_does_not_hold_up_its_whole(make_grid: OpenGrid, functions: Functions, engine: Engine) -> None:
    """A part of a map that is dead-lettered counts as failed, and the reduction runs without it."""
    with make_grid(max_receives=1) as grid, grid.worker(app="nanogrid") as worker:
        client = Client(grid.settings)
        whole = client.map_reduce(
            functions.request(programs.SQUARE_SLOWLY, timeoutMs=60_000),
            [1, 2],
            functions.request(programs.SUM),
            on_failure=PartFailure.SKIP,
        )
        await_container(grid, f"{whole}/0")
        os.kill(busy_child(worker, grid, f"{whole}/0"), signal.SIGKILL)
        result = client.wait(whole, WAIT_S)
        assert (result.outcome, result.value) == (Outcome.SUCCEEDED, 4), result.stderr
        assert client.result(f"{whole}/0").outcome is Outcome.NOT_RUN


def test_garbage_ends_in_the_dead_letter_queue(make_grid: OpenGrid, functions: Functions) -> None:
    """A message without a request is never deleted, and delays nothing."""
    with make_grid() as grid, grid.worker(app="nanogrid"):
        sqs = sqs_client(grid.settings)
        sqs.send_message(QueueUrl=resolve("python", grid.settings), MessageBody="no request at all")
        client = Client(grid.settings)
        result = client.wait(client.submit(functions.request(programs.HELLO)), WAIT_S)
        assert result.outcome is Outcome.SUCCEEDED
        wait_until(lambda: depths(["python"], grid.settings)[0].dead_letters == 1, "it is in the dead-letter queue")


def test_an_engine_that_is_away_for_a_while(make_grid: OpenGrid, functions: Functions, tmp_path: Path) -> None:
    """A warm function runs without the engine; if one needs a new container, the attempt is retried."""
    with (
        EngineProxy(tmp_path / "docker.sock") as proxy,
        make_grid(docker_url=proxy.url, max_attempts=20, prewarmed={"python": 0}) as grid,
        grid.worker(app="nanogrid") as worker,
    ):
        client = Client(grid.settings)
        assert client.wait(client.submit(functions.request(programs.HELLO)), WAIT_S).attempt == 1
        proxy.cut()
        warm = client.wait(client.submit(functions.request(programs.HELLO, payload=2)), WAIT_S)
        assert (warm.outcome, warm.attempt, warm.start_kind) == (Outcome.SUCCEEDED, 1, StartKind.WARM)
        request_id = client.submit(functions.request("print('another')"))
        wait_until(lambda: worker.said("attempt 1 failed"), "the first attempt has failed")
        proxy.mend()
        result = client.wait(request_id, WAIT_S)
        assert result.outcome is Outcome.SUCCEEDED
        assert result.attempt > 1


def test_an_engine_that_stays_away(make_grid: OpenGrid, functions: Functions, tmp_path: Path) -> None:
    """After the last attempt, the result reports the number of attempts and the last error."""
    with (
        EngineProxy(tmp_path / "docker.sock") as proxy,
        make_grid(docker_url=proxy.url, max_attempts=3, prewarmed={"python": 0}) as grid,
        grid.worker(app="nanogrid"),
    ):
        client = Client(grid.settings)
        proxy.cut()
        result = client.wait(client.submit(functions.request(programs.HELLO)), WAIT_S)
        assert (result.outcome, result.exit_code, result.attempt) == (Outcome.NOT_RUN, -1, 3)
        assert "gave up after 3 attempts" in result.stderr
        assert "Docker could not" in result.stderr
        proxy.mend()


def test_another_attempt_waits_in_sqs_and_can_be_cancelled(
    make_grid: OpenGrid, functions: Functions, tmp_path: Path
) -> None:
    """The worker that failed holds nothing of the request during the back-off, so a restart meanwhile costs it nothing."""
    with (
        EngineProxy(tmp_path / "docker.sock") as proxy,
        make_grid(docker_url=proxy.url, retry_backoff_s=600, retry_backoff_max_s=600, prewarmed={"python": 0}) as grid,
        grid.worker(app="nanogrid") as worker,
    ):
        client = Client(grid.settings)
        proxy.cut()
        request_id = client.submit(functions.request(programs.HELLO))
        wait_until(lambda: worker.said("attempt 1 failed"), "the first attempt has failed")
        proxy.mend()
        wait_until(lambda: depths(["python"], grid.settings)[0].delayed == 1, "the second waits in SQS")
        wait_until(lambda: depths(["python"], grid.settings)[0].in_flight == 0, "the first message is gone")
        assert client.state(request_id) == "RETRY"
        assert client.cancel(request_id)
        assert client.wait(request_id, WAIT_S).outcome is Outcome.CANCELLED


def test_redis_restarts_during_a_run(
    make_grid: OpenGrid, functions: Functions, own_redis: Service, engine: Engine
) -> None:
    """A restart of Redis under running functions loses no result."""
    url = f"redis://127.0.0.1:{own_redis.port}"
    with (
        make_grid(redis_url=f"{url}/0") as grid,
        grid.worker(app="nanogrid"),
    ):
        client = Client(grid.settings)
        request_id = client.submit(functions.request(programs.SLEEP, payload=2, timeoutMs=30_000))
        await_container(grid, request_id)
        own_redis.kill()
        time.sleep(3)  # the function ends while Redis is down
        own_redis.start()
        fresh = Client(grid.settings)
        assert fresh.wait(request_id, WAIT_S).outcome is Outcome.SUCCEEDED
