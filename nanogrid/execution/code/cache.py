"""Unpacked code on disk by the SHA-256 of its object, and the version that each S3 object had when it was last fetched.

The rule: everything under `entries/` is complete and never changes. It appears by one rename and disappears by one
rename, so a process may be killed at any point and no other process sees half of anything.

    entries/<sha256>/        published code: `tree/` (read-only) and `entry.json`; its mtime is the last use
    index/<source>.json      bucket and key → the version last fetched, and the sha256 of its bytes
    workplaces/<random>/     downloads, trees being filled, and entries on their way out
    locks/                   one file per source that is being fetched, and `publish`
    occupied                 the bytes of all entries, so that publishing does not look at each of them

Locks (see `locks`): an entry in use has a shared lock, and evicting it takes an exclusive lock. A workplace is locked by its
process; an unlocked one belongs to a dead process and is removed. Publishing and evicting happen under `locks/publish`, so
that the size limit holds for all processes together; nothing slow happens while it is held.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nanogrid.execution.code.locks import Lock, try_exclusive, try_shared, wait_for_file
from nanogrid.execution.code.s3_source import ObjectVersion
from nanogrid.execution.code.tree import TreeSize, remove_tree

log = logging.getLogger(__name__)

MOST_KNOWN = 10_000
"""Digests whose facts a process keeps."""


@dataclass(frozen=True)
class SourceRecord:
    """What was last fetched from a source, and when: each fetch makes a different record."""

    etag: str
    version_id: str
    sha256: str
    fetched_at_ns: int

    @property
    def version(self) -> ObjectVersion:
        """The object's version at the time of the fetch."""
        return ObjectVersion(self.etag, self.version_id)


@dataclass(frozen=True)
class CacheUsage:
    """What the cache holds. Only entries in use may exceed `limit_bytes`."""

    entries: int
    disk_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class Occupied:
    """The bytes of all entries, and when all of them were last looked at."""

    disk_bytes: int
    counted_at: float

    def plus(self, bytes_: int) -> Occupied:
        """The same with one more entry of this size."""
        return replace(self, disk_bytes=self.disk_bytes + bytes_)


SPARE_PART = 20
"""An eviction frees up to a twentieth of the cache more than it must."""

COUNT_AGAIN_S = 3600.0
"""What is noted counts for an hour: an older NanoGrid on the same folder, or somebody's hand, changes entries without a note."""


class CacheEntry:
    """Published code, locked against eviction until `release`."""

    def __init__(self, lock: Lock, path: Path, unpacked: TreeSize) -> None:
        self._lock = lock
        self.path = path
        self.unpacked = unpacked

    def release(self) -> None:
        """Allow eviction again."""
        self._lock.release()


def source_name(endpoint: str, bucket: str, key: str) -> str:
    """The name under which the cache knows an S3 object."""
    return hashlib.sha256("\0".join((endpoint, bucket, key)).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class _Known:
    """What never changes about the code of a digest, so that it is read once per process."""

    path: Path
    tree: Path
    unpacked: TreeSize


class Cache:
    """The cache in one folder, shared by all threads and processes that open it. Creates its folders on first use.

    All mutable state: `_known`, facts about code by digest.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._entries = folder / "entries"
        self._index = folder / "index"
        self._workplaces = folder / "workplaces"
        self._locks = folder / "locks"
        self._overfull = folder / "overfull"
        self._occupied = folder / "occupied"
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._known: dict[str, _Known] = {}

    # -- reading

    def use(self, sha256: str) -> CacheEntry | None:
        """The code of this digest, locked and marked as used now. None if it is not in the cache."""
        known = self._known.get(sha256)
        lock = try_shared(known.path if known else self._entries / sha256)
        if lock is None:
            return None
        try:
            known = known or self._learn(sha256, lock.path)
            os.utime(lock.path)
        except BaseException:
            lock.release()
            raise
        return CacheEntry(lock, known.tree, known.unpacked)

    def record(self, source: str) -> SourceRecord | None:
        """What was last fetched from a source, if anything."""
        try:
            return SourceRecord(**json.loads((self._index / f"{source}.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            # Records are not flushed to the disk one by one, so a power loss may leave an empty one.
            log.warning("The cache's record %s cannot be read; fetching the code again.", source)
            return None

    def usage(self) -> CacheUsage:
        """Entries and bytes at present. An entry that is published or evicted meanwhile may or may not be counted."""
        sizes = [size for _, _, size in self._listed()]
        return CacheUsage(len(sizes), sum(sizes), self._limit_bytes)

    # -- writing

    @contextmanager
    def fetching(self, source: str) -> Iterator[None]:
        """Be the only one, of all threads and processes, who fetches this source."""
        self._make_folders()
        path = self._locks / source
        with wait_for_file(path):
            try:
                yield
            finally:
                # A waiting process has the removed file open, gets its lock, and notices that the name is gone.
                path.unlink(missing_ok=True)

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder on the cache's file system for work in progress, gone at the end."""
        self._make_folders()
        lock = self._new_workplace()
        try:
            yield lock.path
        finally:
            remove_tree(lock.path)
            lock.release()

    def publish(self, draft: Path, sha256: str, unpacked: TreeSize) -> CacheEntry:
        """Make `draft`, a folder in a workplace with the sealed `tree`, the entry of this digest, and return it in use.

        Evicts other entries to make room. If another process was faster, its entry is used.
        """
        (draft / "entry.json").write_text(json.dumps(asdict(unpacked)))
        _flush(draft)
        with self._publishing():
            entry = self.use(sha256)
            if entry is not None:
                return entry
            evicted, occupied = self._make_room(unpacked.disk_bytes)
            self._note(occupied.plus(unpacked.disk_bytes))
            lock = try_shared(draft)
            if lock is None:
                raise FileNotFoundError(f"the draft {draft} is gone or locked")
            draft.rename(self._entries / sha256)
            lock.path = self._entries / sha256
        self._remove(evicted)
        return CacheEntry(lock, lock.path / "tree", unpacked)

    def remember(self, source: str, version: ObjectVersion, sha256: str) -> None:
        """Record what was fetched from a source."""
        record = SourceRecord(version.etag, version.version_id, sha256, time.time_ns())
        with self.workplace() as workplace:
            draft = workplace / "record.json"
            draft.write_text(json.dumps(asdict(record)))
            draft.rename(self._index / f"{source}.json")

    def trim(self) -> None:
        """Evict what exceeded the limit only because it was in use. Call it after each release; it mostly costs one stat."""
        if not self._overfull.exists():
            return
        with self._publishing():
            evicted, occupied = self._evict(room_for_bytes=0)
            self._note(occupied)
        self._remove(evicted)

    def empty(self) -> None:
        """Evict everything that is not in use."""
        with self._publishing():
            evicted, occupied = self._evict(room_for_bytes=self._limit_bytes)
            self._note(occupied)
        self._remove(evicted)

    def sweep(self) -> None:
        """Remove what dead processes left behind."""
        self._make_folders()
        for path in self._workplaces.iterdir():
            if lock := try_exclusive(path):
                with lock:
                    log.info("Removing %s, left by a process that was killed.", path.name)
                    remove_tree(path)
        for path in self._locks.iterdir():
            if path.name != "publish" and (lock := try_exclusive(path)):
                with lock:
                    path.unlink()

    # -- parts

    def _learn(self, sha256: str, path: Path) -> _Known:
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        known = self._known[sha256] = _Known(path, path / "tree", _unpacked(path))
        return known

    def _make_folders(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._entries, self._index, self._workplaces, self._locks):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _publishing(self) -> Lock:
        self._make_folders()
        return wait_for_file(self._locks / "publish")

    def _new_workplace(self) -> Lock:
        while True:
            path = self._workplaces / uuid.uuid4().hex
            path.mkdir(mode=0o700)
            # Between these two lines, another process's sweep may take the new folder for one of a dead process.
            if lock := try_exclusive(path):
                return lock

    def _listed(self) -> list[tuple[int, Path, int]]:
        """(last use, entry, disk bytes) of all entries, least recently used first."""
        found = []
        for path in self._entries.iterdir() if self._entries.exists() else ():
            try:
                found.append((path.stat().st_mtime_ns, path, _unpacked(path).disk_bytes))
            except FileNotFoundError:
                continue  # evicted meanwhile
        return sorted(found)

    def _make_room(self, bytes_: int) -> tuple[list[Lock], Occupied]:
        """Evict until this much fits, if necessary. Looks at all entries only if what was noted says that it may not fit."""
        noted = self._noted()
        if noted is not None and noted.disk_bytes + bytes_ <= self._limit_bytes:
            return [], noted
        return self._evict(bytes_)

    def _evict(self, room_for_bytes: int) -> tuple[list[Lock], Occupied]:
        """If `room_for_bytes` more do not fit, evict until they do, least recently used first, never one in use.

        Evicts a little more, so that not each of the next fetches looks at all entries. Only moves entries away: the caller deletes
        them after it has released `locks/publish`. Also returns what the others occupy.
        """
        listed = self._listed()
        occupied = sum(size for _, _, size in listed)
        excess = occupied + room_for_bytes - self._limit_bytes
        spare = self._limit_bytes // SPARE_PART if excess > 0 else 0
        evicted: list[Lock] = []
        for _, path, size in listed:
            if excess <= -spare or (excess <= 0 and size > excess + spare):
                break
            if lock := try_exclusive(path):
                lock.path = self._workplaces / uuid.uuid4().hex
                path.rename(lock.path)
                evicted.append(lock)
                excess -= size
                occupied -= size
                log.info("Evicting code %s (%d bytes) from the cache.", path.name, size)
        return evicted, Occupied(occupied, time.time())

    def _noted(self) -> Occupied | None:
        """What all entries occupy by the last note. None if it cannot be relied on: then the entries must be counted."""
        try:
            noted = Occupied(**json.loads(self._occupied.read_text()))
            return noted if 0 <= time.time() - noted.counted_at < COUNT_AGAIN_S else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _note(self, occupied: Occupied) -> None:
        """Note what all entries occupy, and mark the cache for `trim` if entries in use keep it above its limit.

        Called before an entry appears and after others have disappeared: the note of a process that is killed in between is too
        high, which leads to a count.
        """
        try:
            self._occupied.write_text(json.dumps(asdict(occupied)))
        except (
            OSError
        ):  # a full disk, which may be why the cache is being emptied: without a note the entries are counted
            self._occupied.unlink(missing_ok=True)
        if occupied.disk_bytes > self._limit_bytes:
            self._overfull.touch()
        else:
            self._overfull.unlink(missing_ok=True)

    def _remove(self, evicted: list[Lock]) -> None:
        for lock in evicted:
            remove_tree(lock.path)
            lock.release()
        if evicted:
            self._forget_evicted()

    def _forget_evicted(self) -> None:
        """Remove records whose code is gone, so that the index does not grow forever. Losing a record costs one download."""
        for path in self._index.iterdir():
            record = self.record(path.stem)
            if record is not None and not (self._entries / record.sha256).exists():
                path.unlink(missing_ok=True)


def _unpacked(entry: Path) -> TreeSize:
    return TreeSize(**json.loads((entry / "entry.json").read_text()))


_libc = ctypes.CDLL(None, use_errno=True)


def _flush(folder: Path) -> None:
    """Flush everything written so far to the disk, so that a published entry is complete even after a power loss.

    One syncfs takes about 20 ms; an fsync for each of 200 files takes 200 ms.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
