"""pytest-celery's fixtures, redefined: images of ours, and containers that live as long as a test module.

Redefined are the fixtures that make containers (pytest-celery fixes their classes and scope there) and those that choose
one broker, backend and worker out of all that it knows. Everything else, `celery_setup` first of all, is its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryWorkerCluster,
    LocalstackTestBroker,
    RedisTestBackend,
)
from pytest_docker_tools import container, fxtr, network

from nanogrid.client import Client
from nanogrid.execution.container.engine import Engine
from nanogrid.settings import Settings
from tests.acceptance.conftest import QUICK, assert_nothing_left
from tests.acceptance.containers.components import (
    MOTO_IMAGE,
    REDIS_IMAGE,
    WORKER_IMAGE,
    Moto,
    Redis,
    Worker,
    WorkerNode,
)
from tests.support.functions import Functions
from tests.support.rig import CPP_IMAGE, PYTHON_IMAGE
from tests.support.worker import settings_for, variables

TEST_LABEL = "nanogrid.test"
START_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def docker_client() -> Iterator[docker.DockerClient]:
    """The engine, for pytest-docker-tools, whose own client is never closed."""
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def module_labels(docker_client: docker.DockerClient) -> Iterator[dict[str, str]]:
    """What marks this module's containers and network. At its end none of them is left."""
    for image in (WORKER_IMAGE, MOTO_IMAGE, REDIS_IMAGE, PYTHON_IMAGE, CPP_IMAGE):
        assert docker_client.images.list(image), f"image {image} is missing: run `make test-images`"
    mark = uuid.uuid4().hex
    yield {TEST_LABEL: mark}
    marked = f"{TEST_LABEL}={mark}"
    assert docker_client.containers.list(all=True, filters={"label": marked}) == []
    assert docker_client.networks.list(filters={"label": marked}) == []


@pytest.fixture(scope="module")
def worker_data_dir(module_labels: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workers' data folder: the engine mounts parts of it, so it has the same path here and in the worker."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def worker_pid_mode() -> str | None:
    """None: the worker is process 1 of a pid namespace of its own."""
    return None


# -- containers. pytest-docker-tools makes a fixture of each call; strings in braces are the names of fixtures.

default_pytest_celery_network = network(scope="module", labels=fxtr("module_labels"))

default_localstack_broker = container(
    scope="module",
    image=MOTO_IMAGE,
    network="{default_pytest_celery_network.name}",
    labels=fxtr("module_labels"),
    wrapper_class=Moto,
    timeout=START_TIMEOUT_S,
)

default_redis_backend = container(
    scope="module",
    image=REDIS_IMAGE,
    command=Redis.command(),
    network="{default_pytest_celery_network.name}",
    labels=fxtr("module_labels"),
    wrapper_class=Redis,
    timeout=START_TIMEOUT_S,
)

WORKER_OPTIONS: dict[str, Any] = {
    "image": WORKER_IMAGE,
    "command": Worker.command(),
    "environment": fxtr("default_worker_env"),
    "network": "{default_pytest_celery_network.name}",
    "labels": fxtr("module_labels"),
    "volumes": {
        "/var/run/docker.sock": {"bind": "/var/run/docker.sock"},
        "/sys/fs/cgroup": {"bind": "/sys/fs/cgroup"},
        "{worker_data_dir}": {"bind": "{worker_data_dir}"},
    },
    "pid_mode": fxtr("worker_pid_mode"),
    "wrapper_class": Worker,
    "timeout": START_TIMEOUT_S,
}

worker_container = container(scope="module", **WORKER_OPTIONS)


@pytest.fixture(scope="module")
def default_worker_container(worker_container: Worker, worker_settings: Settings) -> Iterator[Worker]:
    """The module's worker. Asked to end it ends well, and leaves nothing on the engine or in its data folder."""
    yield worker_container
    if worker_container.running:
        assert worker_container.stop() == 0, worker_container.logs()
        assert_nothing_left(worker_settings)


# -- settings: the same NanoGrid, seen from inside its network and from this process


def quick_settings(aws_url: str, redis_url: str, data_dir: Path) -> Settings:
    """Settings with fast retries and redeliveries."""
    return settings_for(aws_url=aws_url, redis_url=redis_url, data_dir=data_dir, queue_prefix="containers-", **QUICK)


@pytest.fixture(scope="module")
def worker_settings(default_localstack_broker: Moto, default_redis_backend: Redis, worker_data_dir: Path) -> Settings:
    """The worker's settings."""
    return quick_settings(
        default_localstack_broker.endpoint_url, f"redis://{default_redis_backend.hostname}:6379/0", worker_data_dir
    )


@pytest.fixture(scope="module")
def default_worker_env(worker_settings: Settings) -> dict[str, str]:
    """The worker's environment: NanoGrid's own variables, and not those of pytest-celery's built-in worker."""
    return variables(worker_settings)


@pytest.fixture(scope="module")
def producer_settings(default_localstack_broker: Moto, default_redis_backend: Redis, worker_data_dir: Path) -> Settings:
    """A producer's settings on this host."""
    return quick_settings(default_localstack_broker.host_endpoint_url, default_redis_backend.host_url, worker_data_dir)


# -- what tests use


@pytest.fixture(scope="module")
def client(module_environment: None, producer_settings: Settings) -> Iterator[Client]:
    """A producer in this process."""
    here = Client(producer_settings)
    yield here
    here.app.close()


@pytest.fixture(scope="module")
def functions(module_environment: None, default_localstack_broker: Moto) -> Functions:
    """Programs in the container's S3."""
    return Functions(default_localstack_broker.host_endpoint_url)


@pytest.fixture(scope="module")
def engine(producer_settings: Settings) -> Iterator[Engine]:
    """This host's engine, to look at functions' containers."""
    here = Engine(producer_settings)
    yield here
    here.close()


# -- pytest-celery's choice of components


@pytest.fixture
def celery_setup_app(client: Client) -> Celery:
    """The app that the setup and all its nodes have: NanoGrid's own."""
    return client.app


@pytest.fixture
def default_worker_cls() -> type[WorkerNode]:
    """The node class."""
    return WorkerNode


@pytest.fixture
def celery_broker_cluster(celery_localstack_broker: LocalstackTestBroker) -> CeleryBrokerCluster:
    """SQS is the only broker."""
    return CeleryBrokerCluster(celery_localstack_broker)


@pytest.fixture
def celery_backend_cluster(celery_redis_backend: RedisTestBackend) -> CeleryBackendCluster:
    """Redis is the only backend."""
    return CeleryBackendCluster(celery_redis_backend)


@pytest.fixture
def celery_worker_cluster(celery_setup_worker: WorkerNode) -> CeleryWorkerCluster:
    """One worker."""
    return CeleryWorkerCluster(celery_setup_worker)
