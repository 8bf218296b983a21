"""What a compile depends on besides its command line, as short facts that can be checked again.

The rule: a file on the container's read-only root cannot change while the cache exists, because both belong to the same container.
Everything else is read again, whole, before an output is taken from the cache. Python >= 3.9, no slow imports.
"""

# pathlib and contextlib take longer to import than a whole hit may take.
# ruff: noqa: PTH100, PTH112, PTH116, PTH118, PTH123, PTH208

from __future__ import annotations

import os
from _blake2 import blake2b
from stat import S_ISDIR, S_ISREG

_FILES_LIMIT = 10_000
_LIBRARY_HEADS = (b"\x7fELF", b"!<arch>\n")

# A fact is (kind, path, names): ("file", f, ()) the content of f; ("names", d, n) which of the names n exist in d and below;
# ("libraries", d, ()) the content of everything in d that a linker might read.
Fact = tuple[str, str, tuple[str, ...]]


class UnclearError(Exception):
    """A dependency that the facts cannot describe. The compile is then not kept."""


class Root:
    """The paths on the container's root file system. `read_only`: they cannot change."""

    def __init__(self, mountinfo: str) -> None:
        mounts = [line.split(" ") for line in mountinfo.splitlines()]
        self._others = tuple(_unescaped(fields[4]) for fields in mounts if fields[4] != "/")
        # Mounts cover each other: the last one of a folder counts.
        options = [fields[5].split(",") for fields in mounts if fields[4] == "/"]
        self.read_only = bool(options) and "ro" in options[-1]

    def holds(self, path: str) -> bool:
        """Return whether a path, and what it links to, can never change."""
        return self._is_below(os.path.abspath(path)) and self._is_below(os.path.realpath(path))

    def _is_below(self, path: str) -> bool:
        return self.read_only and not any(path == mount or path.startswith(mount + "/") for mount in self._others)


def _unescaped(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def digest(key: str, facts: tuple[Fact, ...]) -> str:
    """Return the current state of all facts, in hex. Raises OSError or `UnclearError` if one of them cannot be checked."""
    state = blake2b(key.encode(), digest_size=20)
    for kind, path, names in facts:
        state.update(repr((kind, path)).encode())
        state.update(_LOOK[kind](path, names))
    return state.hexdigest()


def read_regular(path: str) -> bytes:
    """Return the content of a regular file. Raises for anything else: reading a pipe would wait."""
    if not S_ISREG(os.stat(path).st_mode):
        raise UnclearError
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def changed_at_ns(facts: tuple[Fact, ...]) -> int:
    """Return when the last of all named files changed (Unix time)."""
    youngest = 0
    for kind, path, names in facts:
        for one in _paths(kind, path, names):
            youngest = max(youngest, os.stat(one).st_ctime_ns)
    return youngest


def _paths(kind: str, path: str, names: tuple[str, ...]) -> list[str]:
    if kind == "file":
        return [path]
    if kind == "libraries":
        return _libraries(path)
    return [one for one in _named(path, frozenset(names)) if not S_ISDIR(os.stat(one).st_mode)]


def _look_at_file(path: str, _names: tuple[str, ...]) -> bytes:
    return blake2b(read_regular(path), digest_size=20).digest()


def _look_at_names(path: str, names: tuple[str, ...]) -> bytes:
    found = _named(path, frozenset(names))
    return repr((names, found)).encode()


def _look_at_libraries(path: str, _names: tuple[str, ...]) -> bytes:
    state = blake2b(digest_size=20)
    for file in _libraries(path):
        content = read_regular(file)
        # Anything else is a text that names further files, or a thin archive, which names files too.
        if not content.startswith(_LIBRARY_HEADS):
            raise UnclearError
        state.update(repr((file, len(content))).encode())
        state.update(content)
    return state.digest()


_LOOK = {"file": _look_at_file, "names": _look_at_names, "libraries": _look_at_libraries}


def _libraries(folder: str) -> list[str]:
    return sorted(
        os.path.join(folder, name)
        for name in _entries(folder)
        if name.startswith("lib") and (".so" in name or ".a" in name)
    )


def _named(folder: str, names: frozenset[str]) -> list[str]:
    """Return the paths below a folder all of whose parts are among the names: an include could find something there."""
    found: list[str] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        for name in sorted(_entries(here)):
            # A precompiled header is used in place of the header beside it.
            if name in names or (name.endswith(".gch") and name[:-4] in names):
                found.append(os.path.join(here, name))
                if os.path.isdir(found[-1]):
                    waiting.append(found[-1])
        if len(found) > _FILES_LIMIT:
            raise UnclearError
    return found


def _entries(folder: str) -> list[str]:
    """Return the names in a folder; none if it does not exist."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
