"""What users import from the package itself."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module

import pytest

import nanogrid
from nanogrid import client, errors


@pytest.mark.parametrize("name", nanogrid.__all__)
def test_every_public_name_is_importable_and_the_one_of_its_module(name: str) -> None:
    """Whichever of the two imports a user writes, the object is the same."""
    assert getattr(nanogrid, name) is getattr(import_module(nanogrid._HOMES[name]), name)


def test_public_names_are_listed_once_everywhere() -> None:
    """The list, the homes and the docstring have the same names."""
    assert nanogrid.__doc__ is not None
    documented = re.findall(r"^    (\w+) {2,}\S", nanogrid.__doc__, re.MULTILINE)
    assert sorted(documented) == sorted(nanogrid.__all__) == sorted(nanogrid._HOMES)


def test_every_error_that_the_clients_docstrings_name_is_public() -> None:
    """Whoever reads that a method raises it can catch it without looking for its module."""
    texts = [client.__doc__, client.follow.__doc__, *(one.__doc__ for one in vars(client.Client).values())]
    named = {name for text in texts for name in re.findall(r"\b[A-Z]\w+Error\b", text or "")}
    ours = {name for name in named if hasattr(errors, name)}
    assert {"InvalidRequestError", "RedisUnavailableError", "ResultUnavailableError"} <= ours
    assert ours <= set(nanogrid.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nanogrid' has no attribute 'nothing'"):
        nanogrid.nothing  # noqa: B018  # the access is what is tested


def test_importing_the_package_loads_nothing_else() -> None:
    """Names are imported when they are used."""
    program = "import sys, nanogrid; print([name for name in sys.modules if name.startswith(('nanogrid.', 'celery'))])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
