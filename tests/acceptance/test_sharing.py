"""What the children of a real worker load for themselves: nothing, because the main process has loaded it before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from nanogrid.client import Client
from tests.acceptance.conftest import QUICK, OpenGrid
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.probe import LOADED
from tests.support.worker import Grid, Worker

WAIT_S = 60.0
MOST_OBJECTS = 50_000
"""Far fewer than a worker has loaded, and far more than it creates while it starts its children."""


@pytest.fixture(scope="module")
def grid(module_grid: OpenGrid) -> Iterator[Grid]:
    """A NanoGrid whose worker has one child."""
    with module_grid(**QUICK, concurrency=1) as here:
        yield here


@pytest.fixture(scope="module")
def worker(grid: Grid) -> Iterator[Worker]:
    """A worker that can say what it has loaded."""
    with grid.worker() as running:
        yield running


def by_child(grid: Grid) -> dict[str, Any]:
    """What the child has loaded."""
    found: dict[str, Any] = grid.app.send_task(LOADED, queue="python").get(timeout=WAIT_S)
    return found


def by_main(grid: Grid, worker: Worker) -> dict[str, Any]:
    """What the main process has loaded."""
    ((_, found),) = grid.app.control.broadcast("loaded_by_main", reply=True, destination=[worker.name], timeout=5)[
        0
    ].items()
    return dict(found)


def test_a_run_imports_nothing(grid: Grid, worker: Worker, client: Client, functions: Functions) -> None:
    """A run that fetches its code from S3 imports no module that the main process has not imported before."""
    assert client.wait(client.submit(functions.request(programs.HELLO)), WAIT_S).success
    own = set(by_child(grid)["modules"]) - set(by_main(grid, worker)["modules"])
    assert own == set()


def test_no_collection_looks_at_what_was_loaded(
    grid: Grid, worker: Worker, client: Client, functions: Functions
) -> None:
    """Neither in the main process, which collects before each fork, nor in a child that replaces another one."""
    assert by_main(grid, worker)["frozen"] > MOST_OBJECTS
    first = by_child(grid)["pid"]
    os.kill(first, signal.SIGKILL)
    second = by_child(grid)
    assert second["pid"] != first
    assert second["frozen"] > MOST_OBJECTS
    assert client.wait(client.submit(functions.request(programs.HELLO)), WAIT_S).success
