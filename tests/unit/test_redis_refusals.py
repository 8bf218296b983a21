"""Which errors of Redis are retried."""

from __future__ import annotations

import pytest
import redis
from redis.backoff import NoBackoff

from nanogrid.connections.result_redis import PatientRetry, passes

PASSING = [
    redis.ReadOnlyError("You can't write against a read only replica."),
    redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    redis.ResponseError("NOREPLICAS Not enough good replicas to write. script: 68be, on @user_script:22."),
    redis.ResponseError(
        "Error running script (call to f_1): @user_script:5: @user_script: 5: -READONLY You can't write"
    ),
    redis.ResponseError("Command # 2 (SET nanogrid:claim:a x) of pipeline caused error: NOREPLICAS Not enough"),
    redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist"),
    redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
]
FINAL = [
    redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    redis.ResponseError("BUSYGROUP Consumer Group name already exists"),
    redis.ResponseError("Command # 1 (SET -NOREPLICAS x) of pipeline caused error: WRONGTYPE Operation against a key"),
    redis.exceptions.NoScriptError("No matching script. Please use EVAL."),
    redis.exceptions.NoPermissionError("this user has no permissions to run the 'xadd' command"),
    ValueError("NOREPLICAS"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_passes_by_itself_is_tried_again(error: Exception) -> None:
    """A Redis that refuses writes for the moment will accept them again: nothing is given up."""
    left = [error, error]

    def do() -> str:
        if left:
            raise left.pop()
        return "done"

    assert passes(error)
    assert PatientRetry(NoBackoff(), 3).call_with_retry(do, lambda _: None) == "done"


@pytest.mark.parametrize("error", FINAL, ids=str)
def test_what_does_not_pass_is_an_error(error: Exception) -> None:
    """An error in a command is raised at once, whatever a key is called."""
    tries = []

    def do() -> None:
        tries.append(1)
        raise error

    assert not passes(error)
    with pytest.raises(type(error)):
        PatientRetry(NoBackoff(), 3).call_with_retry(do, lambda _: None)
    assert len(tries) == 1


def test_an_endless_retry_logs_what_redis_said_and_no_value(caplog: pytest.LogCaptureFixture) -> None:
    """In a pipeline redis-py quotes the command, with what was to be written."""
    left = [
        redis.ResponseError("Command # 1 (SETEX key 60 secret output) of pipeline caused error: NOREPLICAS Not enough")
    ]

    def do() -> str:
        if left:
            raise left.pop()
        return "done"

    assert PatientRetry(NoBackoff(), -1).call_with_retry(do, lambda _: None) == "done"
    assert caplog.messages == ["Redis refused a command (NOREPLICAS Not enough); retrying until it succeeds"]
