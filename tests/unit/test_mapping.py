"""Map and reduce: what a failed part does to the map."""

from __future__ import annotations

import pytest

from nanogrid.errors import MapPartFailedError
from nanogrid.result import ExecutionResult, Outcome, not_run
from nanogrid.results.mapping import PartFailure, reducer_input

GOOD = ExecutionResult(
    request_id="m/0",
    function_id="f",
    exit_code=0,
    stdout="",
    stderr="",
    duration_millis=1,
    success=True,
    outcome=Outcome.SUCCEEDED,
    value=4,
)
BAD = not_run("m/1", "f", "broken")


def test_fail_names_the_parts_that_failed() -> None:
    """With FAIL, one failed part stops the reduction, and the error names the number and the parts."""
    with pytest.raises(MapPartFailedError, match="1 of 2 parts failed: m/1 NOT_RUN"):
        reducer_input([GOOD, BAD], PartFailure.FAIL.value)


def test_skip_feeds_what_succeeded() -> None:
    """With SKIP, the reducing function gets only the parts that succeeded."""
    assert [part["requestId"] for part in reducer_input([GOOD, BAD], "skip")] == ["m/0"]


def test_include_feeds_everything_in_order() -> None:
    """With INCLUDE, the reducing function gets all parts, in order, with their outcomes."""
    fed = reducer_input([BAD, GOOD], "include")
    assert [(part["requestId"], part["outcome"]) for part in fed] == [("m/1", "NOT_RUN"), ("m/0", "SUCCEEDED")]


def test_without_failures_every_choice_is_the_same() -> None:
    """The choice matters only if a part failed."""
    assert all(reducer_input([GOOD], policy.value) == [GOOD.to_wire()] for policy in PartFailure)
