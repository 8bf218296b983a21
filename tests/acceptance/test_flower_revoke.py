"""Flower's button against a real container."""

from __future__ import annotations

import time
from contextlib import closing

from nanogrid.client import Client
from nanogrid.execution.container.engine import Engine
from nanogrid.result import Outcome
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.pool import containers_of, exists
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker


def test_revoke_with_terminate_kills_the_container(
    grid: Grid, worker: Worker, client: Client, functions: Functions
) -> None:
    """Within two seconds of Flower's call the container is gone, and Flower shows the task as revoked."""
    with grid.flower(app="nanogrid") as flower, closing(Engine(grid.settings)) as engine:
        request_id = client.submit(functions.request(programs.SLEEP, timeoutMs=120_000))
        wait_until(lambda: containers_of(grid.settings.data_dir, request_id), "the container runs")
        (container,) = containers_of(grid.settings.data_dir, request_id)
        wait_until(lambda: flower.get(f"/api/task/info/{request_id}")[0] == 200, "Flower knows the task")
        asked = time.monotonic()
        status, answer = flower.post(f"/api/task/revoke/{request_id}?terminate=true")
        assert status == 200, answer
        wait_until(lambda: not exists(engine, container, grid.settings), "the container is gone", 10)
        assert time.monotonic() - asked < 2
        assert client.wait(request_id, 10).outcome is Outcome.CANCELLED
        wait_until(lambda: flower.api(f"/api/task/info/{request_id}")["state"] == "REVOKED", "Flower shows it")
