"""A failover of the result Redis under a real worker: no request loses its end, and none is run twice for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogrid.client import Client, follow
from nanogrid.result import Outcome
from nanogrid.sqs.queues import depths
from tests.acceptance.conftest import open_grid
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.redis_pair import RedisPair, redis_pair
from tests.support.services import wait_until
from tests.support.worker import Grid, environment

WAIT_S = 60.0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[RedisPair]:
    """A primary and its replica."""
    (tmp_path / "redis").mkdir()
    with redis_pair(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def grid(pair: RedisPair, tmp_path: Path, aws_url: str, redis_url: str, unique: str) -> Iterator[Grid]:
    """A NanoGrid that wants each result on the replica, too."""
    with open_grid(
        tmp_path,
        aws_url=aws_url,
        redis_url=pair.url,
        monitor_url=redis_url.replace("/0", "/1"),
        unique=unique,
        result_replicas=1,
        result_replicas_wait_ms=200,
        overhead_s=4,
        hard_limit_grace_s=1,
    ) as here:
        yield here


def held(grid: Grid) -> int:
    """How many messages a worker holds."""
    return depths(["python"], grid.settings)[0].in_flight


MAP = """
import json, sys
from nanogrid.client import Client
client = Client()
print(json.dumps(client.wait(client.map_reduce(*json.load(sys.stdin)), 60).value))
"""


def mapped(grid: Grid, *arguments: object) -> object:
    """The value of a map and its reduction, asked for by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MAP],
        input=json.dumps(arguments),
        env=environment(grid.settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_result_survives_the_primary_that_alone_had_it(grid: Grid, pair: RedisPair, functions: Functions) -> None:
    """The replica is cut off, the function ends, the primary dies: the message waited, and the result comes to the new primary."""
    with grid.worker(app="nanogrid", queues="python") as worker:
        client = Client(grid.settings)
        first = client.submit(functions.request(programs.HELLO, payload=1))
        assert client.wait(first, WAIT_S).outcome is Outcome.SUCCEEDED
        wait_until(lambda: held(grid) == 0, "its message is deleted")
        pair.sever()
        second = client.submit(functions.request(programs.HELLO, payload=2))
        wait_until(lambda: worker.said("NANOGRID_RESULT_REPLICAS wants 1"), "the worker says what it waits for")
        assert held(grid) == 1
        pair.fail_over(add_replica=True)
        wait_until(lambda: held(grid) == 0, "its message is deleted")
        assert Client(grid.settings).result(second).stdout == "hello 2\n"
        assert worker.log.read_text().count(f"started   {second}") == 1
        assert mapped(grid, functions.request(programs.SQUARE), [1, 2], functions.request(programs.SUM)) == 5
    told = [(found.number, found.result.request_id) for found in follow(grid.settings, start="all", idle_s=0.0)]
    assert told[:2] == [(1, first), (2, second)]
    assert [number for number, _ in told] == [1, 2, 3, 4, 5]


def test_a_replica_that_stays_away_beyond_celerys_limits_costs_no_result(
    grid: Grid, pair: RedisPair, functions: Functions
) -> None:
    """Celery ends the child that waits, and the main process waits in its place: the message stays until the replica is back."""
    with grid.worker(app="nanogrid", queues="python") as worker:
        client = Client(grid.settings)
        client.wait(client.submit(functions.request(programs.HELLO)), WAIT_S)
        pair.sever()
        request_id = client.submit(functions.request(programs.HELLO, payload=2, timeoutMs=1000))
        waits = f"MainProcess] nanogrid:celery-task-meta-{request_id}: 0 replicas have it"
        wait_until(lambda: worker.said(waits), "the main process waits in the child's place")
        assert held(grid) == 1
        pair.mend()
        wait_until(lambda: held(grid) == 0, "its message is deleted")
        assert client.result(request_id).stdout == "hello 2\n"
        assert client.wait(client.submit(functions.request(programs.HELLO)), WAIT_S).outcome is Outcome.SUCCEEDED
