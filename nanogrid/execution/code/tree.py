"""A folder that is filled from an archive and then sealed.

The rule: while the tree is filled it contains only plain files and folders, so that nothing can be written through a
link. Symbolic links are created last, after each was resolved without the disk and found to end inside the tree.

A sealed tree is read-only (files 0444, or 0555 if the archive marks them executable; folders 0555), belongs to the worker's
user, has one fixed time, and contains regular files, folders and relative symbolic links. Hard links of a tar stay hard
links, to an earlier file in the same tree.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from nanogrid.errors import CodeCorruptError
from nanogrid.execution.code.entries import ArchiveEntry, EntryKind, corrupt, parts_of, shown
from nanogrid.execution.code.limits import Meter

FIXED_TIME_NS = 315_532_800 * 10**9
"""1980-01-01, the oldest time that a zip file supports: functions may zip these files."""

LONGEST_LINK = 1024
MOST_LINK_STEPS = 200_000
"""Path components that are checked, for all links of one archive together, before the links count as an attack."""

BLOCK_BYTES = 4096


@dataclass(frozen=True)
class TreeSize:
    """What came out of an archive. `disk_bytes` counts whole blocks, and one for each folder and link."""

    size_bytes: int
    disk_bytes: int
    entries: int


class Tree:
    """Fills `folder`, which must exist and be empty; nobody else may write to it."""

    def __init__(self, folder: Path, meter: Meter) -> None:
        self._folder = folder
        self._meter = meter
        self._kinds: dict[str, EntryKind] = {}
        self._targets: dict[str, str] = {}
        self._size_bytes = 0
        self._disk_bytes = 0

    def add(self, entry: ArchiveEntry) -> None:
        """Add one entry to the tree. Raises CodeCorruptError; the folder is then unusable."""
        parts = parts_of(entry.name)
        if not parts:
            if entry.kind is not EntryKind.FOLDER:
                raise corrupt(entry.name, f"is a {entry.kind.value} instead of the function's folder: pack it again")
            return
        self._add_folders(parts[:-1], entry.name)
        path = "/".join(parts)
        if entry.kind is EntryKind.FOLDER:
            self._add_folder(path, entry.name)
            return
        self._register(path, entry)
        if entry.kind is EntryKind.FILE:
            self._write(path, entry)
        elif entry.kind is EntryKind.HARD_LINK:
            self._hard_link(path, entry)
        else:
            self._targets[path] = _checked_target(entry)

    def seal(self) -> TreeSize:
        """Create the links, then remove every write permission."""
        if EntryKind.FILE not in self._kinds.values():
            raise CodeCorruptError("the archive is empty: it contains no file")
        self._check_links()
        for path, target in self._targets.items():
            (self._folder / path).symlink_to(target)
            os.utime(self._folder / path, ns=(FIXED_TIME_NS, FIXED_TIME_NS), follow_symlinks=False)
            self._disk_bytes += BLOCK_BYTES
        folders = [path for path, kind in self._kinds.items() if kind is EntryKind.FOLDER]
        for path in (*sorted(folders, reverse=True), "."):
            (self._folder / path).chmod(0o555)
            os.utime(self._folder / path, ns=(FIXED_TIME_NS, FIXED_TIME_NS))
            self._disk_bytes += BLOCK_BYTES
        return TreeSize(self._size_bytes, self._disk_bytes, len(self._kinds))

    def _add_folders(self, parts: tuple[str, ...], name: str) -> None:
        for depth in range(1, len(parts) + 1):
            self._add_folder("/".join(parts[:depth]), name)

    def _add_folder(self, path: str, name: str) -> None:
        known = self._kinds.get(path)
        if known is EntryKind.FOLDER:
            return
        if known is not None:
            raise corrupt(name, f"clashes: {shown(path)} is a {known.value} and a folder: pack it again")
        self._kinds[path] = EntryKind.FOLDER
        self._meter.check_entries(len(self._kinds), name)
        (self._folder / path).mkdir(0o700)

    def _register(self, path: str, entry: ArchiveEntry) -> None:
        known = self._kinds.get(path)
        if known is not None:
            raise corrupt(entry.name, f"clashes: the archive already has a {known.value} of this name: pack it again")
        # A hard link is another name of a file, and counts as a file from here on.
        self._kinds[path] = EntryKind.FILE if entry.kind is EntryKind.HARD_LINK else entry.kind
        self._meter.check_entries(len(self._kinds), entry.name)

    def _write(self, path: str, entry: ArchiveEntry) -> None:
        target = self._folder / path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        size = 0
        with os.fdopen(os.open(target, flags, 0o600), "wb", buffering=0) as file:
            for chunk in entry.chunks:
                _write_all(file.fileno(), chunk)
                size += len(chunk)
            os.fchmod(file.fileno(), 0o555 if entry.executable else 0o444)
            os.utime(file.fileno(), ns=(FIXED_TIME_NS, FIXED_TIME_NS))
        self._size_bytes += size
        self._disk_bytes += -(-size // BLOCK_BYTES) * BLOCK_BYTES

    def _hard_link(self, path: str, entry: ArchiveEntry) -> None:
        source = "/".join(parts_of(_checked_target(entry)))
        if self._kinds.get(source) is not EntryKind.FILE or source == path:
            raise corrupt(
                entry.name, f"is a hard link to {shown(entry.target)}, which is not an earlier file in the archive"
            )
        os.link(self._folder / source, self._folder / path, follow_symlinks=False)

    def _check_links(self) -> None:
        steps = 0
        for path, target in self._targets.items():
            steps = self._follow(path, target, steps)

    def _follow(self, path: str, target: str, steps: int) -> int:
        """Follow a link to its end as the kernel would, in the table of entries. Return the steps taken so far."""
        here = path.split("/")[:-1]
        ahead = deque(target.split("/"))
        while ahead:
            steps += 1
            if steps > MOST_LINK_STEPS:
                raise corrupt(path, "is a link that never ends, or one of too many: pack the files themselves")
            part = ahead.popleft()
            if part in ("", "."):
                continue
            if part == "..":
                if not here:
                    raise corrupt(
                        path, f"is a link to {shown(target)}, out of the function's folder: pack the file itself"
                    )
                here.pop()
                continue
            here.append(part)
            reached = "/".join(here)
            kind = self._kinds.get(reached)
            if kind is None or (kind is EntryKind.FILE and ahead):
                raise corrupt(path, f"is a link to {shown(target)}, which is not in the archive: pack the file itself")
            if kind is EntryKind.LINK:
                here.pop()
                ahead.extendleft(reversed(self._targets[reached].split("/")))
        return steps


def _checked_target(entry: ArchiveEntry) -> str:
    target = entry.target
    if not target or len(target) > LONGEST_LINK:
        raise corrupt(
            entry.name, f"is a link with no or too long a target: at most {LONGEST_LINK} characters are accepted"
        )
    if target.startswith("/"):
        raise corrupt(entry.name, f"is a link to the absolute path {shown(target)}: pack the file itself")
    try:
        usable = "\0" not in target and bool(target.encode())
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise corrupt(entry.name, f"is a link to {shown(target)}, which is not a usable path: pack the file itself")
    return target


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def remove_tree(folder: Path) -> None:
    """Remove a folder and its contents, sealed or half filled. Does nothing if it does not exist."""
    if not folder.exists():
        return
    for parent, _, _ in os.walk(folder):
        Path(parent).chmod(0o700)
    shutil.rmtree(folder)
