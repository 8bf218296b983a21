"""The oldest versions that pyproject.toml allows, of everything at once: all that is done with them works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.collector import collector
from tests.support.installed import IMPORTS_ALL, SUBMITS, Installed, check
from tests.support.services import wait_until

VERBS = (
    ("status", "running"),
    ("doctor", "workers"),
    ("invoke hello.py --payload 7", "hello 7"),
    ("tune hello.py --memory 64,128 --runs 1 --chart chart.png", "128"),
    ("results", "hello"),
    ("pool", "hello"),
    ("tuner show hello", "hello"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with all extras."""
    return Installed(tmp_path_factory.mktemp("lowest"), lock="lowest.txt")


@pytest.fixture(scope="module")
def stack(installed: Installed) -> Iterator[dict[str, str]]:
    """SQS, S3, Redis, Flower and a worker."""
    with installed.stack() as variables:
        yield variables


def test_every_module_can_be_imported(installed: Installed) -> None:
    """None asks for what a newer version has brought."""
    check(installed.run("python", "-c", IMPORTS_ALL), 0, "modules")


@pytest.mark.parametrize(("words", "said"), VERBS, ids=[words for words, _ in VERBS])
def test_a_verb(installed: Installed, stack: dict[str, str], words: str, said: str) -> None:
    """It works on the local stack."""
    check(installed.run("nanogrid", *words.split()), 0, said)


def test_wrong_use_is_explained(installed: Installed) -> None:
    """What is missing is named."""
    check(installed.run("nanogrid", "invoke"), 2, "Missing argument")


def test_celery_asks_the_worker(installed: Installed, stack: dict[str, str]) -> None:
    """Over the side channel."""
    check(installed.run("celery", "-A", "nanogrid", "inspect", "ping", variables=stack), 0, "pong")


def test_traces_are_told(installed: Installed, stack: dict[str, str]) -> None:
    """With the oldest OpenTelemetry."""
    with collector() as told:
        tracing = {"NANOGRID_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": told.url}
        check(installed.run("python", "-c", SUBMITS, variables={**stack, **tracing}), 0, "-")
        wait_until(lambda: told.spans, "a span has come")
