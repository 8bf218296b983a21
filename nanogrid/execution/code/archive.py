"""Unpacks a function's archive (zip; tar, plain or with gzip, bzip2 or xz) into a read-only folder.

The rule: an archive is either unpacked completely and exactly, inside its folder and its limits, or refused with one
sentence; there is no third outcome. The format is detected from the content, never from a name. An ambiguous name, a second
entry of the same name, bytes after the end: all are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanogrid.errors import CodeCorruptError
from nanogrid.execution.code import tarred, zipped
from nanogrid.execution.code.entries import ArchiveEntry
from nanogrid.execution.code.limits import ArchiveLimits, Meter
from nanogrid.execution.code.tree import Tree, TreeSize

ACCEPTED = "accepted are zip, and tar with no, gzip, bzip2 or xz compression"


def unpack(archive: Path, folder: Path, limits: ArchiveLimits) -> TreeSize:
    """Unpack `archive` into `folder`, which must exist and be empty, and seal it (see `tree`).

    Raises CodeCorruptError, or an OSError of the disk; the caller must then discard the folder.
    """
    meter = Meter(limits, archive.stat().st_size)
    tree = Tree(folder, meter)
    for entry in _entries(archive, meter):
        tree.add(entry)
    return tree.seal()


def _entries(archive: Path, meter: Meter) -> Iterator[ArchiveEntry]:
    with archive.open("rb") as file:
        start = file.read(512)
    if not start:
        raise CodeCorruptError(f"the object is empty (0 bytes), not an archive: {ACCEPTED}")
    if start.startswith(zipped.MAGICS):
        return zipped.entries(archive, meter)
    for magic, (_, open_raw) in tarred.OPENERS.items():
        if start.startswith(magic):
            return tarred.entries(archive, meter, open_raw)
    if tarred.looks_like_tar(start):
        return tarred.entries(archive, meter, None)
    raise CodeCorruptError(f"the object is not an archive, it starts with {ascii(start[:16])[1:]}: {ACCEPTED}")
