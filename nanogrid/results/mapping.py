"""Map and reduce: what a reducing function gets to see, and what a failing part does to the whole."""

from __future__ import annotations

from enum import Enum
from typing import Any

from nanogrid.errors import MapPartFailedError
from nanogrid.result import ExecutionResult

NAMED_PARTS = 3


class PartFailure(str, Enum):
    """What happens when a part of a map does not succeed."""

    FAIL = "fail"
    """The reducing function is not run; the whole ends as NOT_RUN and names the parts."""
    SKIP = "skip"
    """The reducing function sees the results of the parts that succeeded."""
    INCLUDE = "include"
    """The reducing function sees all results and decides by itself."""


def reducer_input(results: list[ExecutionResult], on_failure: str) -> list[dict[str, Any]]:
    """The payload of the reducing function: the parts' ExecutionResults as JSON objects, in the order of the payloads.

    Raises MapPartFailedError for PartFailure.FAIL where a part did not succeed.
    """
    failed = [result for result in results if not result.success]
    policy = PartFailure(on_failure)
    if failed and policy is PartFailure.FAIL:
        named = ", ".join(f"{result.request_id} {result.outcome.value}" for result in failed[:NAMED_PARTS])
        more = f" and {len(failed) - NAMED_PARTS} more" if len(failed) > NAMED_PARTS else ""
        raise MapPartFailedError(f"{len(failed)} of {len(results)} parts failed: {named}{more}")
    chosen = [result for result in results if result.success] if policy is PartFailure.SKIP else results
    return [result.to_wire() for result in chosen]
