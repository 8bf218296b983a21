"""What a forked child must not share with its parent, in one registry.

The rule: every descriptor or connection that only one process may use is registered here. One hook runs in each
forked child before any other code does.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

log = logging.getLogger(__name__)


class OfParent(Protocol):
    """A part that belongs to the parent alone, such as a listening socket."""

    def leave_to_parent(self) -> None:
        """Close the child's copies of its descriptors."""


class OfEachProcess(Protocol):
    """A part that each process has, with connections of its own."""

    def renew_after_fork(self) -> None:
        """Drop the parent's connections without closing them for the parent."""


_of_parent: weakref.WeakSet[OfParent] = weakref.WeakSet()
_of_each_process: weakref.WeakSet[OfEachProcess] = weakref.WeakSet()


def close_in_child(part: OfParent) -> None:
    """Have a part closed in each child that is forked from this process. Its own children have nothing left to close."""
    _of_parent.add(part)


def renew_in_child(part: OfEachProcess) -> None:
    """Have a part renewed in each child, and in each child of that."""
    _of_each_process.add(part)


def forget(part: OfParent) -> None:
    """Undo `close_in_child`, for a part that is closed already."""
    _of_parent.discard(part)


def _in_child() -> None:
    _call(part.renew_after_fork for part in list(_of_each_process))
    _call(part.leave_to_parent for part in list(_of_parent))
    _of_parent.clear()


def _call(all_of_them: Iterable[Callable[[], None]]) -> None:
    for each in all_of_them:
        try:
            each()
        except Exception:  # one part that fails must not keep the others' descriptors open
            log.exception("a forked process could not leave a part to its parent")


os.register_at_fork(after_in_child=_in_child)
