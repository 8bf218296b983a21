"""Progress for people: lines on standard error, so that standard output stays for programs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class BuildError(Exception):
    """An image is not available; the message says why and what to do."""


def say(line: str) -> None:
    """One line of progress."""
    print(f"  {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Print that something takes time, and how long it took."""
    started = time.monotonic()
    say(f"{what} …")
    yield
    say(f"{what}: {time.monotonic() - started:.0f} s")
