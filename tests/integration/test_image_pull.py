"""Images from a registry, as a deployment has one: a real registry on loopback."""

from __future__ import annotations

import logging
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import docker
import pytest

from nanogrid.errors import ImageUnavailableError
from nanogrid.execution.container.engine import Engine
from nanogrid.settings import Settings
from tests.support.rig import PYTHON_IMAGE
from tests.support.services import Service, free_port, running

CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that holds one image; its `host:port`."""
    binary = shutil.which("docker-registry")
    assert binary, "docker-registry is not installed: run scripts/setup --tests"
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    (folder / "config.yml").write_text(CONFIG.format(folder=folder, port=port))
    address = f"127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=2):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    service = Service([binary, "serve", str(folder / "config.yml")], port, folder / "registry.log", answers)
    with running(service):
        push(PYTHON_IMAGE, f"{address}/python")
        yield address


def push(image: str, repository: str) -> None:
    """Put an image of this engine into a registry, and take the name away again."""
    with closing(docker.APIClient(version="auto")) as api:
        api.tag(image, repository, "3.9-slim")
        for line in api.push(repository, "3.9-slim", stream=True, decode=True):
            assert "error" not in line, line
        api.remove_image(f"{repository}:3.9-slim")


@pytest.fixture
def image(registry: str) -> Iterator[str]:
    """The name of an image that is in the registry and not on this host."""
    name = f"{registry}/python:3.9-slim"
    yield name
    with closing(docker.APIClient(version="auto")) as api:
        api.remove_image(name)


def test_a_missing_image_is_pulled_with_progress_in_the_log(image: str, caplog: pytest.LogCaptureFixture) -> None:
    """An image that is not on the host comes from its registry, and the log says so while it comes."""
    caplog.set_level(logging.INFO)
    with closing(Engine(Settings())) as engine:
        assert not engine.has_image(image)
        engine.ensure_image(image)
        assert engine.has_image(image)
        lines = [record.getMessage() for record in caplog.records if image in record.getMessage()]
        assert lines[0] == f"image {image}: pulling"
        assert "pulled in" in lines[-1]
        assert len(lines) >= 3, lines
        caplog.clear()
        engine.ensure_image(image)
        assert not caplog.records


def test_an_image_that_no_registry_has(registry: str) -> None:
    """The error names the image, the registry's answer and what to do."""
    with closing(Engine(Settings())) as engine, pytest.raises(ImageUnavailableError) as caught:
        engine.ensure_image(f"{registry}/no-such:1")
    assert f"{registry}/no-such:1 cannot be pulled" in str(caught.value)
    assert "deploy/images/build" in str(caught.value)
    assert caught.value.retryable
