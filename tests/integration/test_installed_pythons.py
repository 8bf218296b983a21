"""The wheel on every Python that this machine has, from 3.10 to the newest: it is imported, and runs functions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installed import IMPORTS_ALL, Installed, check
from tests.support.rig import CPP_IMAGE, PYTHON_IMAGE
from tests.support.services import Service, aws_client
from tests.support.worker import Grid, grid, variables

OLDEST = (3, 10)
SAYS_VERSION = ("-c", "import sys, venv; print(*sys.version_info[:2])")


def interpreters() -> dict[str, str]:
    """By version: one interpreter of each that works here, but for the one that runs the tests, which has all other tests."""
    folders: list[str | Path] = [
        *os.get_exec_path(),
        *Path.home().glob(".pyenv/versions/*/bin"),
        *Path("/opt").glob("python*/bin"),
    ]
    found = {}
    for path in sorted({path for folder in folders for path in Path(folder).glob("python3.*")}):
        if re.fullmatch(r"python3\.\d+", path.name) and os.access(path, os.X_OK):
            said = subprocess.run([path, *SAYS_VERSION], capture_output=True, text=True, check=False).stdout.split()
            version = tuple(map(int, said))
            if version >= OLDEST and version != sys.version_info[:2]:
                found[".".join(said)] = str(path)
    return found or {".".join(map(str, sys.version_info[:2])): sys.executable}


PYTHONS = interpreters()


@pytest.fixture(scope="module", params=PYTHONS)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel without extras, on this Python."""
    made = Installed(tmp_path_factory.mktemp("installed"), python=PYTHONS[request.param])
    said = made.run("python", *SAYS_VERSION).stdout.split()
    assert ".".join(said) == request.param
    return made


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, aws_url: str, redis_server: Service) -> Iterator[Grid]:
    """SQS, S3 and Redis."""
    url = f"redis://127.0.0.1:{redis_server.port}"
    aws_client("s3", aws_url).create_bucket(Bucket="nanogrid-functions")
    with grid(
        tmp_path_factory.mktemp("grid"),
        aws_url=aws_url,
        redis_url=f"{url}/6",
        unique="pythons",
        python_image=PYTHON_IMAGE,
        cpp_image=CPP_IMAGE,
        prewarmed={},
    ) as here:
        yield here


def test_every_module_can_be_imported(installed: Installed) -> None:
    """Without a warning of ours."""
    check(installed.run("python", "-W", "error:::nanogrid", "-c", IMPORTS_ALL), 0, "modules")


def test_a_worker_runs_functions(installed: Installed, deployment: Grid) -> None:
    """Sent by the command of the same environment; and the worker ends in order."""
    settings = variables(deployment.settings)
    with installed.running("celery -A nanogrid worker -Q python,cpp -l info", variables=settings, ready=" ready."):
        for number in range(2):
            done = installed.run("nanogrid", "invoke", "hello.py", "--payload", str(number), variables=settings)
            check(done, 0, f"hello {number}")
