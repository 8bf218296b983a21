"""One outcome per run, derived from facts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nanogrid.errors import ContainerLostError
from nanogrid.execution.code.required import HandlerModule
from nanogrid.execution.container.cgroup import Usage
from nanogrid.execution.container.engine import ExitStatus
from nanogrid.execution.container.report import EndReason, RunReport, Stream
from nanogrid.execution.executor import classify, handler_command, value_of
from nanogrid.result import ExecutionResult, Outcome, not_run


def report(ended: EndReason, exit_code: int | None = None, oom_kills: int | None = 0) -> RunReport:
    return RunReport(ended, exit_code, Stream(1), Stream(1), 1.0, Usage(1, 1, oom_kills))


def container(*, oom_killed: bool = False) -> Any:
    """A removed container, as the engine reports its end."""
    return SimpleNamespace(
        name="c", end=ExitStatus(running=False, exit_code=137, oom_killed=oom_killed), destroy=lambda: None
    )


@pytest.mark.parametrize(
    ("run", "outcome", "exit_code"),
    [
        (report(EndReason.EXITED, 0), Outcome.SUCCEEDED, 0),
        (report(EndReason.EXITED, 3), Outcome.FAILED, 3),
        (report(EndReason.EXITED, 137), Outcome.FAILED, 137),  # 137 alone proves nothing: a function may kill itself
        (report(EndReason.EXITED, 137, oom_kills=1), Outcome.OUT_OF_MEMORY, 137),
        (
            report(EndReason.EXITED, 1, oom_kills=1),
            Outcome.OUT_OF_MEMORY,
            1,
        ),  # the compiler was killed, the script failed
        (report(EndReason.EXITED, 0, oom_kills=1), Outcome.SUCCEEDED, 0),  # it lost a child and coped
        (report(EndReason.TIMED_OUT, oom_kills=1), Outcome.TIMED_OUT, -1),
        (report(EndReason.OUTPUT_LIMIT), Outcome.OUTPUT_LIMIT, -1),
    ],
)
def test_the_outcome_follows_from_what_was_counted(run: RunReport, outcome: Outcome, exit_code: int) -> None:
    """Exit codes are never taken as causes."""
    assert classify(run, container()) == (outcome, exit_code)


def test_without_accounts_the_engine_is_asked() -> None:
    """If the cgroup cannot be read, the engine's flag of the ended container decides."""
    run = report(EndReason.EXITED, 137, oom_kills=None)
    assert classify(run, container(oom_killed=True)) == (Outcome.OUT_OF_MEMORY, 137)
    assert classify(run, container(oom_killed=False)) == (Outcome.FAILED, 137)


def test_a_container_that_vanished_is_our_trouble() -> None:
    """A container that disappeared was lost, unless memory was the reason."""
    assert classify(report(EndReason.LOST), container(oom_killed=True)) == (Outcome.OUT_OF_MEMORY, 137)
    with pytest.raises(ContainerLostError):
        classify(report(EndReason.LOST), container(oom_killed=False))


@pytest.mark.parametrize(
    ("handler", "module"), [("app.run", "app"), ("package.module.run", "package"), ("todos/get-one.get", "todos")]
)
def test_a_handler_needs_its_module(handler: str, module: str) -> None:
    """The interpreter calls a handler, so the code must contain its module."""
    command = ("python", "/nanogrid/runner/call_handler.py", handler)
    assert handler_command(handler) == (command, HandlerModule(module))


@pytest.mark.parametrize(
    ("written", "value", "line"),
    [
        (b'{"a": [1, 2.5, "NaN"]}', {"a": [1, 2.5, "NaN"]}, ""),
        (b'{"a": NaN}', {"a": None}, "NaN"),
        (b"[1, Infinity, -Infinity, NaN, NaN]", [1, None, None, None, None], "Infinity, -Infinity, NaN"),
        (b"NaN", None, "NaN"),
        (b"[1e400, -1E+999]", [None, None], "1e400, -1E+999"),
        (b"[1e-400, 1e300, 3]", [0.0, 1e300, 3], ""),
    ],
)
def test_numbers_that_json_has_not_are_null_and_told(written: bytes, value: object, line: str) -> None:
    """The rest of the value stays, and no reader of the result meets invalid JSON."""
    found, told = value_of(written)
    assert found == value
    assert told == (f"nanogrid: the value holds {line}, which JSON does not have; replaced by null\n" if line else "")


@pytest.mark.parametrize("written", [b"{", b"\x89PNG", b"[" * 100_000, b"1" * 5000, b'{"a": nan}', b"\xff\xfe"])
def test_what_is_no_json_is_no_value(written: bytes) -> None:
    """One line reports it."""
    found, told = value_of(written)
    assert found is None
    assert told.startswith("nanogrid: the value in NANOGRID_RESULT is not JSON: ")


def test_a_value_is_nested_as_deep_as_its_readers_follow() -> None:
    """A deeper value is left out and reported: it must not break the result, neither here nor for its readers."""
    found, told = value_of(b"[" * 200 + b"]" * 200)
    assert told == ""
    result = not_run("id", "function", "reason").model_copy(update={"value": found})
    assert ExecutionResult.model_validate_json(result.model_dump_json(by_alias=True)) == result
    for deep in (201, 300, 900):
        found, told = value_of(b"[" * deep + b"]" * deep)
        assert found is None
        assert told.startswith(
            "nanogrid: the value in NANOGRID_RESULT is left out because it is nested more than 200 levels deep"
        )
