"""Packages among the function's own code, as `pip install -t .` puts them there. They count as packages, like those of a layer.

The rule: what has package metadata (`*.dist-info/RECORD`) is a package, at the top of the code or in a folder there. Everything else is the
program's own. The metadata is the function's, so a one-shot child reads it and passes on only names that exist in the code.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH112, PTH118, PTH208
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

from nanogrid_warm import channel, paths

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Iterable

METADATA = ".dist-info"
RECORD_BYTES = 16 << 20
CODE = paths.CODE + "/"
OWN = paths.WORKSPACE + "/"
PACKAGES = paths.PACKAGES + "/"
UP = ".."

_names: dict[str, frozenset[str]] = {}
"""By folder in the workspace, with a slash at its end: the names in it that belong to packages."""


def are_there() -> bool:
    """Return whether there is metadata of packages in the code."""
    return any(name.endswith(METADATA) for site in _sites() for name in _list(CODE + site))


def find() -> bytes:
    """Return the packages' files and folders, relative to the code, one in a line. Called in a one-shot child, as the function's user."""
    lines: list[str] = []
    room = channel.PACKET_BYTES // 2
    for site in _sites():
        names = set(_list(CODE + site))
        metadata = [name for name in names if name.endswith(METADATA)]
        for name in sorted({*metadata, *_recorded(CODE + site, metadata)} & names):
            line = site + name
            room -= len(line.encode("utf-8", "replace")) + 1
            if line.isascii() and line.isprintable() and line != "main.py" and room > 0:
                lines.append(line)
    return "\n".join(lines).encode() or b"\n"


def use(packet: bytes) -> None:
    """Take over what `find` has found, in the first process. Its later children inherit it."""
    found: dict[str, set[str]] = {}
    for line in packet.decode("ascii", "replace").split("\n"):
        folder, slash, name = line.rpartition("/")
        if name and paths.is_normalized(line):
            found.setdefault(OWN + folder + slash, set()).add(name)
    _names.clear()
    _names.update({folder: frozenset(names) for folder, names in found.items()})


def folders_of(name: str) -> list[str]:
    """Return the folders of the code in which a package of this name may be, with a slash at the end."""
    top = name.partition(".")[0]
    return [
        CODE + folder[len(OWN) :]
        for folder, names in _names.items()
        if any(entry.partition(".")[0] == top for entry in names)
    ]


def roots() -> list[str]:
    """Return the paths in the code that belong to packages."""
    return [CODE + folder[len(OWN) :] + name for folder, names in _names.items() for name in names]


def is_package_file(path: str) -> bool:
    """Return whether a path is in a layer, or belongs to a package among the code."""
    if path.startswith(PACKAGES):
        return True
    for folder, names in _names.items():
        if path.startswith(folder) and path[len(folder) :].partition("/")[0] in names:
            return True
    return False


def is_own_file(path: str) -> bool:
    """Return whether a path is in the workspace and belongs to no package."""
    return path.startswith(OWN) and not is_package_file(path)


def _sites() -> list[str]:
    """Return the folders that may hold packages, relative to the code: the code itself, and each folder at its top."""
    names = [name for name in _list(CODE) if not name.endswith(METADATA)]
    return ["", *(name + "/" for name in sorted(names) if os.path.isdir(CODE + name))]


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _recorded(folder: str, metadata: Iterable[str]) -> set[str]:
    """Return the first parts of the paths that belong to these packages."""
    found: set[str] = set()
    for name in metadata:
        try:
            file = os.open(os.path.join(folder, name, "RECORD"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        data = os.pread(file, RECORD_BYTES, 0)
        os.close(file)
        tops = {line.partition(b",")[0].partition(b"/")[0].strip(b'"\r') for line in data.split(b"\n")}
        found.update(top.decode("utf-8", "replace") for top in tops)
    return found - {"", UP}
