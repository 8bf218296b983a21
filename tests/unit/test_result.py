"""Results: their wire format, and the values that follow from an outcome."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from nanogrid.result import ExecutionResult, Outcome, Phases, not_run


def result(**changes: object) -> ExecutionResult:
    base = ExecutionResult(
        request_id="r",
        function_id="f",
        exit_code=0,
        stdout="out",
        stderr="",
        duration_millis=12,
        success=True,
        outcome=Outcome.SUCCEEDED,
    )
    return base.model_copy(update=changes)


def test_the_original_fields_are_on_the_wire() -> None:
    """The seven fields of the original result keep their names and types."""
    wire = json.loads(json.dumps(result().to_wire()))
    original = {"requestId", "functionId", "exitCode", "stdout", "stderr", "durationMillis", "success"}
    assert {key: wire[key] for key in original} == {
        "requestId": "r",
        "functionId": "f",
        "exitCode": 0,
        "stdout": "out",
        "stderr": "",
        "durationMillis": 12,
        "success": True,
    }
    assert wire["outcome"] == "SUCCEEDED"


def test_a_result_survives_the_wire() -> None:
    """A stored result is read back unchanged."""
    assert ExecutionResult.from_wire(json.loads(json.dumps(result().to_wire()))) == result()


def test_an_older_client_reads_a_newer_result() -> None:
    """Unknown fields are ignored."""
    assert ExecutionResult.from_wire({**result().to_wire(), "fromTheFuture": 1}) == result()


@pytest.mark.parametrize(
    ("outcome", "exit_code", "expected"),
    [
        (Outcome.SUCCEEDED, 0, 0),
        (Outcome.FAILED, 3, 3),
        (Outcome.TIMED_OUT, -1, 124),
        (Outcome.OUT_OF_MEMORY, 1, 137),
        (Outcome.NOT_RUN, -1, 125),
        (Outcome.CANCELLED, -1, 130),
        (Outcome.OUTPUT_LIMIT, -1, 1),
    ],
)
def test_the_shell_sees_the_outcome(outcome: Outcome, exit_code: int, expected: int) -> None:
    """A command that ran a function exits with the function's own code, or with the outcome's code."""
    assert result(outcome=outcome, exit_code=exit_code).shell_exit_code == expected


def test_what_was_not_run_says_why() -> None:
    """A request that did not run has exit code -1, and its reason as one line in stderr."""
    answer = not_run("r", "f", "no such key")
    assert (answer.exit_code, answer.success, answer.outcome) == (-1, False, Outcome.NOT_RUN)
    assert answer.stderr == "no such key\n"


def test_no_number_of_a_result_takes_a_boolean() -> None:
    """Python accepts True as 1. Holds for every field, also for future ones, except the function's own value."""
    wire = result().to_wire()
    for model, base in ((ExecutionResult, wire), (Phases, {})):
        for name, field in model.model_fields.items():
            written = field.alias or name
            try:
                number = getattr(model.model_validate({**base, written: 1}), name)
            except ValidationError:
                continue
            if type(number) in (int, float) and name != "value":
                with pytest.raises(ValidationError, match="true is a boolean"):
                    model.model_validate({**base, written: True})
