"""The worker's container is killed in the middle of a run. It is started as deploy/compose.yaml starts it."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from pytest_celery import CeleryTestSetup
from pytest_docker_tools import container

from nanogrid.client import Client
from nanogrid.execution.container.engine import Engine
from nanogrid.result import Outcome
from nanogrid.settings import Settings
from tests.acceptance.conftest import assert_nothing_left
from tests.acceptance.containers.components import Worker
from tests.acceptance.containers.conftest import WORKER_OPTIONS
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.pool import containers_of, exists
from tests.support.services import wait_until

WAIT_S = 60.0


@pytest.fixture(scope="module")
def worker_pid_mode() -> str:
    """The worker sees the host's processes, and is not process 1."""
    return "host"


successor_container = container(**WORKER_OPTIONS)


@pytest.fixture
def successor(successor_container: Worker, worker_settings: Settings) -> Iterator[Worker]:
    """A second worker on the same data folder, started when a test asks for it by `request.getfixturevalue`."""
    yield successor_container
    assert successor_container.stop() == 0, successor_container.logs()
    assert_nothing_left(worker_settings)


def test_kill_9_of_the_workers_container(
    request: pytest.FixtureRequest,
    celery_setup: CeleryTestSetup,
    client: Client,
    functions: Functions,
    engine: Engine,
    worker_settings: Settings,
) -> None:
    """The next worker removes the orphan on the host's engine and finishes the request; nothing of either is left."""
    request_id = client.submit(functions.request(programs.SLEEP, payload=2, timeoutMs=30_000))

    wait_until(lambda: containers_of(worker_settings.data_dir, request_id), "the container runs")
    (orphan,) = containers_of(worker_settings.data_dir, request_id)
    doomed: Worker = celery_setup.worker.container
    processes = doomed.host_pids()
    assert len(processes) >= 3  # the main process and two children
    celery_setup.worker.kill()
    assert doomed.status == "exited"
    wait_until(lambda: not any(map(psutil.pid_exists, processes)), "none of the worker's processes runs on", 5)
    assert exists(engine, orphan, worker_settings)
    successor: Worker = request.getfixturevalue("successor")
    wait_until(lambda: not exists(engine, orphan, worker_settings), "the orphan is gone")
    result = client.wait(request_id, WAIT_S)
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, "up\n")
    assert result.worker == f"celery@{successor.id[:12]}"
