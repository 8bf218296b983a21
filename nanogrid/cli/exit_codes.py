"""Turns what can be expected to go wrong into one sentence and an exit code.

The one rule: only what is understood is made short. Anything else is a bug, and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from nanogrid.cli import console
from nanogrid.errors import NanoGridError, RedisUnavailableError


@contextmanager
def exits_with(code: int) -> Iterator[None]:
    """End the command with `code`, and the reason on stderr, when something expected fails inside."""
    try:
        yield
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        console.complain(sentence)
        raise typer.Exit(code) from None


def explain(error: Exception) -> str | None:
    """One sentence about an error of ours, of AWS or of Redis. None for anything else."""
    if isinstance(error, RedisUnavailableError):
        return f"{error}; `nanogrid doctor` says more"
    if isinstance(error, NanoGridError):
        return str(error)
    if isinstance(error, typer.Exit):
        return None
    # An error is on its way, so the libraries that raise these are loaded already, or cheap beside it.
    from botocore.exceptions import BotoCoreError, ClientError
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    if isinstance(error, (BotoCoreError, ClientError)):
        return f"AWS: {error}; `nanogrid doctor` says more"
    if isinstance(error, (RedisError, OperationalError)):
        return f"the queue or Redis does not answer: {error}; `nanogrid doctor` says more"
    return None
