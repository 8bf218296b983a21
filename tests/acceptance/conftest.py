"""A whole NanoGrid: real worker, real SQS and S3 protocol, real Redis, real Docker engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nanogrid.client import Client
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.labels import DATA_LABEL, data_id
from nanogrid.settings import Settings
from tests.support.functions import Functions
from tests.support.rig import CPP_IMAGE, PYTHON_IMAGE
from tests.support.services import Service, redis_service, running
from tests.support.worker import Grid, Worker
from tests.support.worker import grid as plain_grid

OpenGrid = Callable[..., AbstractContextManager[Grid]]

IMAGES = {"python_image": PYTHON_IMAGE, "cpp_image": CPP_IMAGE}

QUICK = {
    **IMAGES,
    "receive_wait_s": 1,
    "visibility_timeout_s": 6,
    "visibility_heartbeat_s": 2,
    "claim_ttl_s": 3,
    "retry_backoff_s": 0.2,
    "reap_interval_s": 2,
}
"""Settings for fast retries and redeliveries."""


def open_grid(folder: Path, **options: Any) -> AbstractContextManager[Grid]:
    """A NanoGrid that runs functions in the images of the tests."""
    return plain_grid(folder, **{**IMAGES, "receive_wait_s": 1, **options})


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Service]:
    """A Redis of one test, which may stop it or stall it."""
    (tmp_path / "redis").mkdir()
    with running(redis_service(tmp_path / "redis")) as service:
        yield service


@pytest.fixture(scope="module")
def module_environment() -> Iterator[None]:
    """The AWS environment for fixtures that live longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="module")
def module_grid(
    module_environment: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    aws_url: str,
    redis_server: Service,
) -> OpenGrid:
    """Opens the NanoGrid of a test module, with settings of its choice."""

    @contextmanager
    def open_one(*, redis_login: str = "", **settings: Any) -> Iterator[Grid]:
        url = f"redis://{redis_login}127.0.0.1:{redis_server.port}"
        with open_grid(
            tmp_path_factory.mktemp("grid"),
            aws_url=aws_url,
            redis_url=f"{url}/0",
            unique=request.module.__name__.rpartition("_")[2],
            **settings,
        ) as here:
            yield here

    return open_one


@pytest.fixture(scope="module")
def grid(module_grid: OpenGrid) -> Iterator[Grid]:
    """A NanoGrid with fast retries. At its end nothing of it may be left on the engine or the disk."""
    with module_grid(**QUICK, retry_backoff_max_s=1, dead_letter_check_s=1, max_receives=3) as here:
        yield here
        assert_nothing_left(here.settings)


def assert_nothing_left(settings: Settings) -> None:
    """No container of the data folder, no run folder and no lock."""
    with closing(Engine(settings)) as engine:
        assert engine.find({DATA_LABEL: data_id(settings.data_dir)}) == []
    assert [str(path) for path in (settings.data_dir / "runs").rglob("*")] == []
    assert [str(path) for path in (settings.data_dir / "owners").rglob("*")] == []


@pytest.fixture(scope="module")
def worker(grid: Grid) -> Iterator[Worker]:
    """The one worker of a module."""
    with grid.worker(app="nanogrid") as running:
        yield running


@pytest.fixture(scope="module")
def client(grid: Grid) -> Client:
    """A producer."""
    return Client(grid.settings)


@pytest.fixture(scope="module")
def functions(module_environment: None, aws_url: str) -> Functions:
    """Programs in S3."""
    return Functions(aws_url)
