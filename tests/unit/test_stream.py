"""What an entry of the results stream holds, what is cut off, and where a follower may start."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.client import Client
from nanogrid.errors import ConfigurationError, InvalidRequestError
from nanogrid.result import ExecutionResult, Outcome
from nanogrid.results.stream.entry import fields_of, shortened, streamed
from nanogrid.results.stream.readers import gap
from nanogrid.settings import Settings


def result(**fields: Any) -> ExecutionResult:
    """Return a result with some fields replaced."""
    return ExecutionResult.from_wire(
        {
            "requestId": "r-1",
            "functionId": "hello",
            "exitCode": 0,
            "stdout": "",
            "stderr": "",
            "durationMillis": 5,
            "success": True,
            "outcome": "SUCCEEDED",
            **fields,
        }
    )


def through_the_stream(told: ExecutionResult, **settings: Any) -> Any:
    """Return what a follower gets for a result, and the fields stored in Redis."""
    flat = fields_of(told, Settings(**settings))
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return streamed("1700000000123-7", fields), fields


def test_a_small_result_arrives_whole() -> None:
    """Nothing small is cut; number and time are in the entry's id."""
    told = result(stdout="hällo\n", value={"a": [1, None]}, phases={"run": 1.5})
    found, fields = through_the_stream(told)
    assert (found.result, found.cut, found.number, found.stored_at_ms) == (told, (), 7, 1700000000123)
    assert (fields["requestId"], fields["functionId"], fields["outcome"]) == ("r-1", "hello", "SUCCEEDED")


def test_what_is_large_is_cut_and_named() -> None:
    """The start of stdout and the end of stderr stay, a large value is left out, and the flags report it."""
    found, fields = through_the_stream(
        result(stdout="ab" * 50, stderr="cd" * 50, value="x" * 9),
        stream_output_limit_bytes=3,
        stream_value_limit_bytes=10,
    )
    assert (found.result.stdout, found.result.stderr, found.result.value) == ("aba", "dcd", None)
    assert (found.result.stdout_truncated, found.result.stderr_truncated) == (True, True)
    assert found.cut == ("stdout", "stderr", "value")
    assert fields["cut"] == "stdout,stderr,value"
    assert found.to_wire()["cut"] == ["stdout", "stderr", "value"]


@given(st.text(), st.text(), st.integers(0, 20))
def test_no_limit_cuts_a_character_in_two(stdout: str, stderr: str, limit: int) -> None:
    """The rest has no more bytes than the limit, is a start or end of the whole, and misses less than one character."""
    told = result().model_copy(update={"stdout": stdout, "stderr": stderr})
    small, cut = shortened(told, limit, 0)
    for name, whole, kept in (("stdout", stdout, small.stdout), ("stderr", stderr, small.stderr)):
        size = len(kept.encode())
        assert size <= limit
        assert (whole.startswith if name == "stdout" else whole.endswith)(kept)
        assert (name in cut) == (kept != whole)
        assert name not in cut or size > limit - 4


def test_half_a_surrogate_pair_reaches_redis_as_utf8() -> None:
    """JSON can express what UTF-8 cannot; no field of an entry breaks another language's client."""
    told = result().model_copy(update={"value": "\ud800", "stdout": "\ud800" * 5, "function_id": "f\ud800"})
    for field in fields_of(told, Settings(stream_output_limit_bytes=3)):
        assert field.encode()


def test_fields_of_a_newer_worker_are_left_out() -> None:
    """A follower may be older than the workers."""
    fields = {"cut": "", "result": json.dumps({**result().to_wire(), "colour": "blue"})}
    assert streamed("5-1", fields).result == result()


def test_a_gap_is_counted_by_the_numbers() -> None:
    """Consecutive numbers have no gap; the time between them does not matter."""
    assert gap("5-1", "900-2") == 0
    assert gap("5-1", "6-5") == 3
    assert gap("0-0", "6-1") == 0


@pytest.mark.parametrize("first", ["6-1", "6-999", "6-1000"])
def test_numbers_that_fall_are_no_gap_of_none(first: str, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that lost data causes neither a negative gap nor a gap of zero: the number is unknown."""
    assert gap("5-1000", first) is None
    assert (
        f"Redis has lost results, or its stream was emptied; their number is unknown: {first[2:]} follows 1000"
        in caplog.text
    )


@pytest.mark.parametrize("start", ["", "yesterday", "-5", "5-", "5-x", "$", "0"])
def test_a_place_that_cannot_be_understood_is_refused_at_once(start: str) -> None:
    """Before anything is read, with the accepted forms."""
    with pytest.raises(InvalidRequestError, match="is not a position in the results stream; accepted are now, all"):
        Client(Settings()).follow(start=start)


def test_a_stream_that_is_switched_off_cannot_be_followed() -> None:
    """Nobody waits for results that are never appended."""
    with pytest.raises(ConfigurationError, match="NANOGRID_STREAM_ENTRIES_LIMIT is 0"):
        Client(Settings(stream_entries_limit=0)).follow()


def test_an_outcome_can_be_seen_without_reading_the_result() -> None:
    """Whoever counts failures need not parse JSON."""
    assert through_the_stream(result(outcome="TIMED_OUT", success=False))[1]["outcome"] == Outcome.TIMED_OUT.value
