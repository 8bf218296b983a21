"""Flower out of the worker image, beside a worker in another container: they meet in Redis alone."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from pytest_celery import CeleryTestSetup
from pytest_docker_tools import container, fxtr

from nanogrid.client import Client
from nanogrid.settings import Settings
from tests.acceptance.containers.components import WORKER_IMAGE, Flower
from tests.acceptance.containers.conftest import START_TIMEOUT_S
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.services import wait_until
from tests.support.worker import variables

USER = "somebody:a-password"

WAIT_S = 60.0


@pytest.fixture(scope="module")
def flower_environment(worker_settings: Settings) -> dict[str, str]:
    """The worker's settings, and who may look."""
    return {**variables(worker_settings), "FLOWER_BASIC_AUTH": USER}


flower_container = container(
    scope="module",
    image=WORKER_IMAGE,
    command=Flower.command(),
    environment=fxtr("flower_environment"),
    network="{default_pytest_celery_network.name}",
    labels=fxtr("module_labels"),
    wrapper_class=Flower,
    timeout=START_TIMEOUT_S,
)


def get(url: str) -> Any:
    """The JSON of a page of Flower's API."""
    token = base64.b64encode(USER.encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def test_flower_shows_a_worker_in_another_container(
    celery_setup: CeleryTestSetup, flower_container: Flower, client: Client, functions: Functions
) -> None:
    """The worker is listed, and a finished request with its state; nobody gets in without the password."""
    name = celery_setup.worker.hostname()
    wait_until(lambda: name in get(f"{flower_container.host_url}/api/workers?refresh=1"), "Flower lists the worker")
    request_id = client.submit(functions.request(programs.HELLO, payload=1))
    client.wait(request_id, WAIT_S)

    def shown() -> bool:
        task = get(f"{flower_container.host_url}/api/tasks").get(request_id, {})
        return bool(task.get("state") == "SUCCESS" and task["worker"] == name)

    wait_until(shown, "Flower shows the finished request")
    with (
        pytest.raises(urllib.error.HTTPError) as refused,
        urllib.request.urlopen(f"{flower_container.host_url}/api/tasks"),
    ):
        pass
    refused.value.close()
    assert refused.value.code == 401
