"""A container owner on the real engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rig import Rig
from tests.support.rig import rig as open_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A container owner that the tests of one module share."""
    with open_rig(tmp_path_factory.mktemp("rig")) as here:
        yield here
