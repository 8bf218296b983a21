"""The nouns of every archive format: one entry, its kind, its checked name.

The rule: a name is either usable on Linux unchanged, inside the folder, or the archive is refused. Names are never
repaired, so no two readers of an archive can disagree about where a file is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from nanogrid.errors import CodeCorruptError

LONGEST_COMPONENT_BYTES = 255
LONGEST_PATH_BYTES = 2048
"""Leaves room for the folder's path below Linux's limit of 4096."""
DEEPEST_FOLDER = 100
DRIVE = re.compile(r"[A-Za-z]:")


class EntryKind(Enum):
    """What an entry creates."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    HARD_LINK = "hard link"


@dataclass(frozen=True)
class ArchiveEntry:
    """One entry as it comes out of an archive. Its name is not checked yet.

    `chunks` are a file's bytes; read them before you ask for the next entry. `target` is where a link points.
    """

    name: str
    kind: EntryKind
    executable: bool = False
    target: str = ""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))


def shown(name: str) -> str:
    """A name for use in a message: quoted, with control characters escaped, of bounded length."""
    return ascii(name) if len(name) <= 120 else f"{name[:100]!a}... ({len(name)} characters)"


def corrupt(name: str, problem: str) -> CodeCorruptError:
    """The error for one entry of an archive."""
    return CodeCorruptError(f"archive entry {shown(name)} {problem}")


def parts_of(name: str) -> tuple[str, ...]:
    """The path components of an entry's name; empty for the root itself ("./"). Raises CodeCorruptError.

    It refuses names that leave the folder (absolute, with "..", a drive letter, or a backslash, which Windows tools use as a
    separator) and names that no Linux folder should contain.
    """
    _check_characters(name)
    if name.startswith("/"):
        raise corrupt(name, "is an absolute path: pack with relative paths")
    if DRIVE.match(name):
        raise corrupt(name, "starts with a drive letter: pack with relative paths")
    if "\\" in name:
        raise corrupt(name, "contains a backslash: pack with '/' between folders")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise corrupt(name, "contains '..', which could lead out of the function's folder: pack without it")
    _check_lengths(name, parts)
    return parts


def _check_characters(name: str) -> None:
    if not name:
        raise corrupt(name, "has no name: pack it again")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise corrupt(name, "has a control character in its name: rename the file")
    if any(unicodedata.category(character) == "Cs" for character in name):
        raise corrupt(name, "has a name that is not valid UTF-8: rename the file")


def _check_lengths(name: str, parts: tuple[str, ...]) -> None:
    if any(len(part.encode()) > LONGEST_COMPONENT_BYTES for part in parts):
        raise corrupt(name, f"has a file or folder name of more than {LONGEST_COMPONENT_BYTES} bytes: shorten it")
    if len(name.encode()) > LONGEST_PATH_BYTES:
        raise corrupt(name, f"has a path of more than {LONGEST_PATH_BYTES} bytes: shorten it")
    if len(parts) > DEEPEST_FOLDER:
        raise corrupt(name, f"is nested more than {DEEPEST_FOLDER} folders deep: flatten the folders")
