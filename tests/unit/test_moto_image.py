"""What of the development lock gets into the image of the tests' SQS and S3."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

IMAGES = Path(__file__).resolve().parents[2] / "deploy" / "images"
NEWEST = {"python_full_version": "3.13.5", "python_version": "3.13", "platform_machine": "x86_64", "glibc_minor": 41}


@pytest.fixture
def moto_server(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy/images/moto_server.py."""
    monkeypatch.syspath_prepend(str(IMAGES))
    return importlib.import_module("moto_server")


def test_what_motos_server_needs_is_taken_and_no_tool_of_ours(moto_server: ModuleType) -> None:
    """moto's own dependencies, and theirs, are in; what the project needs besides is not."""
    lock = moto_server.requirements_for(NEWEST)
    names = {line.split("==")[0] for line in lock.splitlines() if "==" in line}
    assert {"moto", "flask", "flask-cors", "werkzeug", "boto3", "botocore", "py-partiql-parser"} <= names
    assert not names & {"celery", "mypy", "playwright", "pytest", "ruff"}


def test_each_entry_keeps_its_hashes(moto_server: ModuleType) -> None:
    """A lock is narrowed by name, however it is written, and whole entries stay or go."""
    lock = "one-two==1 \\\n    --hash=sha256:aa\nthree==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
    assert moto_server.narrowed(lock, {"three"}) == "three==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
    assert moto_server.narrowed(lock.replace("one-two", "One_Two"), {"one-two"}).startswith("One_Two==1 \\\n")
