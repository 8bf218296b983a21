"""Runs measurements where a worker runs functions: in a child, forked from the process with the owner.

The rule: a child that fails makes the whole row fail, with the child's own traceback.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_child(work: Callable[[], T]) -> T:
    """Call `work` in a forked child and return what it returned. Raises RuntimeError if it raised."""
    return in_children([work])[0]


def in_children(works: Sequence[Callable[[], T]]) -> list[T]:
    """Call each in its own child, in parallel. Return the results in the same order."""
    children = [_start(work) for work in works]
    outcomes = [_end(pid, reader) for pid, reader in children]
    for good, value in outcomes:
        if not good:
            raise RuntimeError(f"a child of the benchmark failed:\n{value}")
    return [value for _, value in outcomes]  # type: ignore[misc]  # good ones carry what `work` returned


def _start(work: Callable[[], T]) -> tuple[int, int]:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # The owner's threads are in the parent, as in a worker; the child uses none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    try:
        _answer(work, writer)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _answer(work: Callable[[], T], writer: int) -> None:
    try:
        outcome: tuple[bool, object] = (True, work())
    except BaseException:  # noqa: BLE001  # whatever it is, the parent raises it
        outcome = (False, traceback.format_exc())
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(outcome, pipe)


def _end(pid: int, reader: int) -> tuple[bool, object]:
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        return False, f"it ended without an answer (wait status {status})"
    good, value = pickle.loads(data)  # noqa: S301  # written by the benchmark's own child
    return good, value
