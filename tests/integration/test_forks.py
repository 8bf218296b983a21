"""A producer that forks after it has sent something: parent and children get their results, by whatever they fork."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import forking
from tests.support.services import Service
from tests.support.worker import ROOT, Grid, environment
from tests.support.worker import grid as open_grid


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, aws_url: str, redis_server: Service) -> Iterator[Grid]:
    """A NanoGrid whose worker answers plain tasks."""
    url = f"redis://127.0.0.1:{redis_server.port}"
    with (
        pytest.MonkeyPatch.context() as patch,
        open_grid(
            tmp_path_factory.mktemp("grid"),
            aws_url=aws_url,
            redis_url=f"{url}/0",
            unique="forks",
            receive_wait_s=1,
        ) as here,
    ):
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        with here.worker(queues="python"):
            yield here


@pytest.mark.parametrize("kind", sorted(forking.KINDS))
def test_both_sides_get_their_results(kind: str, grid: Grid) -> None:
    """What was asked before the fork, and what each side asks at the same time."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.forking", kind],
        env=environment(grid.settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parent, *children = json.loads(done.stdout)
    new = [number for number in range(forking.EACH) for _ in forking.APPS]
    before = [7] * len(forking.APPS)
    assert parent == [*before, *new], done.stderr[-3000:]
    assert children == [new if kind == "pool" else [*before, *new]] * forking.CHILDREN, done.stderr[-3000:]
