"""Parts that several modules of integration tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.command import CommandLine
from tests.support.faulty_proxy import FaultyProxy
from tests.support.redis_proxy import RedisProxy
from tests.support.rig import Rig
from tests.support.rig import rig as open_rig
from tests.support.services import Service


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A container owner that the tests of one module share."""
    with open_rig(tmp_path_factory.mktemp("rig")) as here:
        yield here


@pytest.fixture
def proxy(moto: Service) -> Iterator[FaultyProxy]:
    """A proxy in front of SQS that breaks nothing yet."""
    with FaultyProxy(moto.port) as running:
        yield running


@pytest.fixture
def redis_proxy(redis_server: Service) -> Iterator[RedisProxy]:
    """A proxy in front of the session's Redis."""
    with RedisProxy(redis_server.port) as running:
        yield running


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A stack of this module that is up."""
    line = CommandLine(tmp_path_factory.mktemp("stack"))
    try:
        line.up()
        yield line
    finally:
        line.ok("down", "--timeout-s", "0")
