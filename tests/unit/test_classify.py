"""One outcome per run, told from facts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nanogrid.container.cgroup import Usage
from nanogrid.container.engine import End
from nanogrid.container.report import Ended, RunReport, Stream
from nanogrid.errors import ContainerLostError
from nanogrid.executor import classify, handler_command
from nanogrid.result import Outcome


def report(ended: Ended, exit_code: int | None = None, oom_kills: int | None = 0) -> RunReport:
    return RunReport(ended, exit_code, Stream(1), Stream(1), 1.0, Usage(1, 1, oom_kills))


def container(*, oom_killed: bool = False) -> Any:
    """A container that is gone, as the engine tells its end."""
    return SimpleNamespace(name="c", end=End(running=False, exit_code=137, oom_killed=oom_killed), destroy=lambda: None)


@pytest.mark.parametrize(
    ("run", "outcome", "exit_code"),
    [
        (report(Ended.EXITED, 0), Outcome.SUCCEEDED, 0),
        (report(Ended.EXITED, 3), Outcome.FAILED, 3),
        (report(Ended.EXITED, 137), Outcome.FAILED, 137),  # 137 alone proves nothing: a function may kill itself
        (report(Ended.EXITED, 137, oom_kills=1), Outcome.OUT_OF_MEMORY, 137),
        (report(Ended.EXITED, 1, oom_kills=1), Outcome.OUT_OF_MEMORY, 1),  # the compiler was killed, the script failed
        (report(Ended.EXITED, 0, oom_kills=1), Outcome.SUCCEEDED, 0),  # it lost a child and coped
        (report(Ended.TIMED_OUT, oom_kills=1), Outcome.TIMED_OUT, -1),
        (report(Ended.OUTPUT_LIMIT), Outcome.OUTPUT_LIMIT, -1),
    ],
)
def test_the_outcome_follows_from_what_was_counted(run: RunReport, outcome: Outcome, exit_code: int) -> None:
    """Exit codes are never taken for causes."""
    assert classify(run, container()) == (outcome, exit_code)


def test_without_accounts_the_engine_is_asked() -> None:
    """Where the cgroup cannot be read, the engine's flag about the ended container decides."""
    run = report(Ended.EXITED, 137, oom_kills=None)
    assert classify(run, container(oom_killed=True)) == (Outcome.OUT_OF_MEMORY, 137)
    assert classify(run, container(oom_killed=False)) == (Outcome.FAILED, 137)


def test_a_container_that_vanished_is_our_trouble() -> None:
    """A container that went away was lost, unless memory was the reason."""
    assert classify(report(Ended.LOST), container(oom_killed=True)) == (Outcome.OUT_OF_MEMORY, 137)
    with pytest.raises(ContainerLostError):
        classify(report(Ended.LOST), container(oom_killed=False))


@pytest.mark.parametrize(
    ("handler", "file"), [("app.run", "app.py"), ("main.handler", "main.py"), ("package.module.run", "package")]
)
def test_a_handler_needs_its_module(handler: str, file: str) -> None:
    """A handler is called by the interpreter, and its module must be in the code."""
    assert handler_command(handler) == (("python", "/nanogrid/runner/call_handler.py", handler), file)
