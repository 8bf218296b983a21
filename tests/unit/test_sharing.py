"""What a forked child inherits of S3: the client that its parent made for it, once, and the descriptions it has read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore
import pytest

from benchmarks.children import in_child
from nanogrid.connections import s3
from nanogrid.connections.s3 import make_for_children, s3_client
from nanogrid.connections.sqs import sqs_client
from nanogrid.results.backend import ResultBackend
from nanogrid.settings import Settings

DESCRIPTIONS = str(Path(botocore.__file__).parent / "data")
SETTINGS = Settings(aws_region="eu-central-1", s3_endpoint_url="http://127.0.0.1:9")
OTHER = Settings(aws_region="eu-central-1", s3_endpoint_url="http://127.0.0.1:10")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS environment with credentials, and no client left for children."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    yield
    s3._for_child = None


def opened(work: Callable[[], Any]) -> list[str]:
    """The files that a call opens, in a forked child: what a process audits, it audits for ever."""

    def audited() -> list[str]:
        names: list[str] = []
        sys.addaudithook(lambda event, args: names.append(str(args[0])) if event == "open" else None)
        work()
        return names

    return in_child(audited)


def test_a_child_gets_the_client_of_its_parent_once() -> None:
    """It is the same object. The next client is another one, and the parent never uses that of its children."""
    make_for_children(SETTINGS)
    made = s3._for_child
    assert made is not None
    assert s3_client(SETTINGS) is not made[2]
    taken = in_child(lambda: [s3_client(SETTINGS) is made[2], s3_client(SETTINGS) is made[2]])
    assert taken == [True, False]


def test_a_client_for_another_address_is_not_given() -> None:
    """A child with other settings makes its own."""
    make_for_children(SETTINGS)
    assert in_child(lambda: s3_client(OTHER).meta.endpoint_url) == OTHER.s3_endpoint_url


def test_without_credentials_each_child_makes_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child that starts later may find some."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    make_for_children(SETTINGS)
    assert s3._for_child is None


def test_a_process_reads_the_descriptions_of_the_services_once() -> None:
    """Neither another client nor a client of a child reads any of them again."""
    sqs_client(SETTINGS)
    s3_client(SETTINGS)
    read = opened(lambda: (s3_client(SETTINGS), sqs_client(SETTINGS)))
    assert [name for name in read if name.startswith(DESCRIPTIONS)] == []


def test_a_result_backend_reads_no_metadata_again() -> None:
    """Each child makes its backend anew, and describes itself to Redis with what the parent has read."""
    from nanogrid.celery import make_app

    app = make_app(Settings(aws_region="eu-central-1"))
    first = ResultBackend(app=app, url="redis://127.0.0.1:9/0")
    read = opened(lambda: ResultBackend(app=app, url="redis://127.0.0.1:9/0"))
    assert [name for name in read if Path(name).name == "METADATA"] == []
    second = ResultBackend(app=app, url="redis://127.0.0.1:9/0")
    assert first.connparams == second.connparams
