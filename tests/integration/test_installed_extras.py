"""Each extra alone does what it is for, and what needs another one says so in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.collector import collector
from tests.support.installed import SUBMITS, Installed, check
from tests.support.services import wait_until

TRACING = {"NANOGRID_TRACING": "true"}

NEEDING = {
    "local": (("nanogrid", "up", "--detach"), {}),
    "charts": (("nanogrid", "tune", "hello.py", "--chart", "chart.png"), {}),
    "otel": (("celery", "-A", "nanogrid", "worker", "-Q", "python"), TRACING),
}
"""By extra: a command that needs it, and the variables that make it so."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Installed]:
    """By extra: the wheel with this one and no other."""
    return {extra: Installed(tmp_path_factory.mktemp(extra), extra=extra) for extra in NEEDING}


@pytest.fixture(scope="module")
def stack(installed: dict[str, Installed]) -> Iterator[dict[str, str]]:
    """What the extra `local` is for; the variables that lead the others to it."""
    with installed["local"].stack() as variables:
        yield variables


@pytest.mark.parametrize("extra", NEEDING)
def test_what_needs_another_extra_names_it(installed: dict[str, Installed], extra: str) -> None:
    """In one line, whichever of the others are there."""
    words, variables = NEEDING[extra]
    for other in NEEDING.keys() - {extra}:
        done = installed[other].run(*words, variables=variables)
        (line,) = [line for line in done.stderr.splitlines() if "pip install" in line]
        assert f"pip install 'nanogrid[{extra}]'" in line
        check(done, done.returncode, "")
        assert done.returncode


def test_local_brings_the_stack(installed: dict[str, Installed], stack: dict[str, str]) -> None:
    """All of its parts run, and it runs a function."""
    check(installed["local"].run("nanogrid", "status"), 0, "running")
    check(installed["local"].run("nanogrid", "invoke", "hello.py", "--payload", "7"), 0, "hello 7")


def test_charts_brings_pictures(installed: dict[str, Installed], stack: dict[str, str]) -> None:
    """Of what a stack that was installed without them has measured."""
    words = "tune hello.py --memory 64,128 --runs 1 --chart chart.png"
    check(installed["charts"].run("nanogrid", *words.split(), variables=stack), 0, "128")
    assert (installed["charts"].work / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_otel_brings_traces(installed: dict[str, Installed], stack: dict[str, str]) -> None:
    """A producer tells what it did."""
    with collector() as told:
        variables = {**stack, **TRACING, "OTEL_EXPORTER_OTLP_ENDPOINT": told.url}
        check(installed["otel"].run("python", "-c", SUBMITS, variables=variables), 0, "-")
        wait_until(lambda: told.spans, "a span has come")
