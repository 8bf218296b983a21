"""Fixtures that every test folder shares: real parts, started once per session, and a fresh corner of each per test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import Service, moto_service, redis_service, running


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the credentials, region or NanoGrid settings of the person who runs it."""
    import os

    for name in [name for name in os.environ if name.startswith(("NANOGRID_", "AWS_")) and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """SQS and S3 over HTTP (moto server)."""
    with running(moto_service(tmp_path_factory.mktemp("moto"))) as service:
        yield service


@pytest.fixture(scope="session")
def aws_url(moto: Service) -> str:
    """Endpoint URL of the SQS and S3 server."""
    return f"http://127.0.0.1:{moto.port}"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Redis of this test session."""
    with running(redis_service(tmp_path_factory.mktemp("redis"))) as service:
        yield service


@pytest.fixture
def redis_url(redis_server: Service) -> str:
    """URL of database 0 of the session's Redis."""
    return f"redis://127.0.0.1:{redis_server.port}/0"


@pytest.fixture
def unique() -> str:
    """A short name that no other test uses."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of this test."""
    path = tmp_path / "data"
    path.mkdir()
    return path
