"""Locks on files and folders that end with the process that holds them (flock).

The rule: a lock counts only while the path still names the locked file. To rename or remove a file, a process locks it
exclusively. A process that then gets the lock on the old file notices that the path names something else, and tries again.

A lock has one holder: threads exclude each other as processes do. A forked child drops its copies at once, so a lock never
outlives the process that took it.
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
        """Release the lock. In a forked child this is already done."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        # A time limit may interrupt the holder between any two lines.
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _drop_in_child() -> None:
    # Closing is not unlocking: the parent's descriptor still holds the lock.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)


def wait_for_file(path: Path) -> Lock:
    """Lock a file exclusively, however long it takes. Creates the file if it is missing."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if lock := _locked(descriptor, path, fcntl.LOCK_EX):
            return lock


def try_exclusive(path: Path) -> Lock | None:
    """Lock a file or folder exclusively. None if it is in use or does not exist."""
    return _try(path, fcntl.LOCK_EX)


def try_shared(path: Path) -> Lock | None:
    """Lock a file or folder, shared with others. None if it is being removed or does not exist."""
    return _try(path, fcntl.LOCK_SH)


def _try(path: Path, mode: int) -> Lock | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    return _locked(descriptor, path, mode | fcntl.LOCK_NB)


def _locked(descriptor: int, path: Path, mode: int) -> Lock | None:
    """Lock an open descriptor; close it if the lock is taken or the path names something else by now."""
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
