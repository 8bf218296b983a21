"""The folder of the compiler cache: small files, each complete or absent. New files replace the least recently used ones.

The rule: any problem here (full, damaged, removed meanwhile) is a miss and never an error. Python >= 3.9, no slow imports.
"""

# pathlib and contextlib take longer to import than a whole hit may take.
# ruff: noqa: PTH104, PTH108, PTH118, PTH123, PTH208

from __future__ import annotations

import marshal
import os
from _blake2 import blake2b
from stat import S_ISREG

_LIMIT_BYTES = 256 << 20
_CHECK_BYTES = 20


class Store:
    """A cache in a folder that belongs to this user alone."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def usable(self) -> bool:
        """Return whether the folder exists, belongs to this user, and is closed to others."""
        try:
            status = os.lstat(self._folder)
        except OSError:
            return False
        return status.st_uid == os.geteuid() and status.st_mode & 0o077 == 0 and os.access(self._folder, os.W_OK)

    def get(self, name: str) -> object:
        """Return the value under a name; None if there is none, or it is not complete."""
        path = os.path.join(self._folder, name)
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.readall()
            os.utime(path)
        except OSError:
            return None
        body = data[_CHECK_BYTES:]
        if data[:_CHECK_BYTES] != blake2b(body, digest_size=_CHECK_BYTES).digest():
            return None
        value: object = marshal.loads(body)  # noqa: S302  # this user wrote it, and the checksum proves that it is complete
        return value

    def put(self, name: str, value: object) -> None:
        """Keep a value, or do nothing if there is no room for it."""
        body = marshal.dumps(value)  # type: ignore[arg-type]  # tuples, text, bytes
        data = blake2b(body, digest_size=_CHECK_BYTES).digest() + body
        path = os.path.join(self._folder, name)
        # One process writes one file at a time, so its id makes the name unique.
        unfinished = f"{path}.{os.getpid()}"
        try:
            if not self._make_room(len(data)):
                return
            with open(unfinished, "xb", buffering=0, opener=_private) as file:
                whole = file.write(data) == len(data)
            if whole:
                os.rename(unfinished, path)
                return
        except OSError:
            pass
        _remove(unfinished)

    def _make_room(self, size_bytes: int) -> bool:
        limit = self._limit_bytes()
        if size_bytes > limit // 2:
            return False
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + size_bytes <= limit:
                break
            _remove(path)
            used -= size
        return used + size_bytes <= limit

    def _limit_bytes(self) -> int:
        file_system = os.statvfs(self._folder)
        # The rest is for the interpreter's own compiled modules, and for concurrent writers.
        return min(_LIMIT_BYTES, file_system.f_blocks * file_system.f_frsize * 3 // 4)

    def _files(self) -> list[tuple[int, int, str]]:
        """Return (last use, size in bytes, path) of every file, including unfinished ones."""
        files = []
        for name in os.listdir(self._folder):
            path = os.path.join(self._folder, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if S_ISREG(status.st_mode):
                files.append((status.st_mtime_ns, status.st_blocks * 512, path))
        return files


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
