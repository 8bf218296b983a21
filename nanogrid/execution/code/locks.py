"""Locks on files and folders that end with the process that holds them (flock).

The one rule: a lock counts only while the path still names what was locked. Whoever renames or removes something holds it
exclusively; whoever then gets the lock on what is left over sees that the path has moved on, and looks again.

A lock belongs to one holder: threads exclude each other as processes do. A forked child drops its copies at once, so that
a lock never outlives the process that took it.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path


class Lock:
    """A held lock. `release` may be called more than once."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path
        _held.add(self)

    def release(self) -> None:
        """Let go. In a forked child this is already done."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        # A time limit may interrupt its holder between any two lines.
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _drop_in_child() -> None:
    # Closing is not unlocking: the parent's descriptor still holds the lock.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)


def wait_for_file(path: Path) -> Lock:
    """Lock a file exclusively, however long it takes. The file is made where it is missing."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if lock := _locked(descriptor, path, fcntl.LOCK_EX):
            return lock


def try_exclusive(path: Path) -> Lock | None:
    """Lock a file or folder exclusively. None when it is in use or not there."""
    return _try(path, fcntl.LOCK_EX)


def try_shared(path: Path) -> Lock | None:
    """Lock a file or folder together with others. None when it is being removed or not there."""
    return _try(path, fcntl.LOCK_SH)


def _try(path: Path, mode: int) -> Lock | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    return _locked(descriptor, path, mode | fcntl.LOCK_NB)


def _locked(descriptor: int, path: Path, mode: int) -> Lock | None:
    """Lock an open descriptor, and close it where the lock is not to be had or the path names something else by now."""
    lock = Lock(descriptor, path)
    try:
        fcntl.flock(descriptor, mode)
        if _names(path, descriptor):
            return lock
    except BlockingIOError:
        pass
    except BaseException:
        lock.release()
        raise
    lock.release()
    return None


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
