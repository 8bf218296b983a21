"""Turns expected errors into one sentence and an exit code.

The rule: only expected errors are shortened. Any other error is a bug, and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from nanogrid.cli import console
from nanogrid.errors import NanoGridError, RedisUnavailableError

SEE_DOCTOR = "run `nanogrid doctor` for details"


@contextmanager
def exits_with(code: int) -> Iterator[None]:
    """End the command with `code`, and the reason on stderr, if an expected error occurs inside."""
    try:
        yield
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        console.complain(sentence)
        raise typer.Exit(code) from None


def explain(error: Exception) -> str | None:
    """One sentence about an error of NanoGrid, AWS or Redis. None for any other error."""
    if isinstance(error, RedisUnavailableError):
        return f"{error}; {SEE_DOCTOR}"
    if isinstance(error, NanoGridError):
        return str(error)
    if isinstance(error, typer.Exit):
        return None
    # The command fails anyway, so the libraries that raise these are loaded already, or the time does not matter.
    from botocore.exceptions import BotoCoreError, ClientError
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    if isinstance(error, (BotoCoreError, ClientError)):
        return f"AWS: {error}; {SEE_DOCTOR}"
    if isinstance(error, (RedisError, OperationalError)):
        return f"the queue or Redis does not answer: {error}; {SEE_DOCTOR}"
    return None
