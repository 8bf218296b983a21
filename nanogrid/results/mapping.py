"""Map and reduce: the input of a reducing function, and what a failed part does to the map."""

from __future__ import annotations

from enum import Enum
from typing import Any

from nanogrid.errors import MapPartFailedError
from nanogrid.result import ExecutionResult

NAMED_PARTS = 3


class PartFailure(str, Enum):
    """What happens if a part of a map does not succeed."""

    FAIL = "fail"
    """The reducing function does not run; the map ends as NOT_RUN, and the reason names the failed parts."""
    SKIP = "skip"
    """The reducing function gets the results of the parts that succeeded."""
    INCLUDE = "include"
    """The reducing function gets all results and decides by itself."""


def reducer_input(results: list[ExecutionResult], on_failure: str) -> list[dict[str, Any]]:
    """Return the payload of the reducing function: the parts' ExecutionResults as JSON objects, in the order of the payloads.

    Raises MapPartFailedError if a part did not succeed and `on_failure` is PartFailure.FAIL.
    """
    failed = [result for result in results if not result.success]
    policy = PartFailure(on_failure)
    if failed and policy is PartFailure.FAIL:
        named = ", ".join(f"{result.request_id} {result.outcome.value}" for result in failed[:NAMED_PARTS])
        more = f" and {len(failed) - NAMED_PARTS} more" if len(failed) > NAMED_PARTS else ""
        raise MapPartFailedError(f"{len(failed)} of {len(results)} parts failed: {named}{more}")
    chosen = [result for result in results if result.success] if policy is PartFailure.SKIP else results
    return [result.to_wire() for result in chosen]
