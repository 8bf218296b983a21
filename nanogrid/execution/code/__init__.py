"""The function's code: from an S3 object to a read-only folder on disk.

    s3_source  S3 → a file and its digest
    archive    a file → a sealed tree (zipped, tarred: formats; entries: names; limits; tree: what is written)
    cache      sealed trees by digest, shared by all processes of a host, with the help of locks

The rule: code is found by the SHA-256 of its object, and a HEAD request checks whether S3 still has the same object. A run gets
what S3 had at some moment after its request was sent, and no earlier than a second before the run. So a request that waited while S3
was asked for another one needs no HEAD request, and neither does one that names the digest, if the code is cached.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nanogrid.connections.s3 import s3_client
from nanogrid.errors import CodeCorruptError, CodeUnavailableError
from nanogrid.execution.code.archive import unpack
from nanogrid.execution.code.cache import MOST_KNOWN, Cache, CacheEntry, CacheUsage, SourceRecord, source_name
from nanogrid.execution.code.limits import MIB, ArchiveLimits
from nanogrid.execution.code.required import HandlerModule, check_required
from nanogrid.execution.code.s3_source import ObjectVersion, Source, url
from nanogrid.settings import Settings
from nanogrid.telemetry import counters
from nanogrid.telemetry.events import count

__all__ = ["Code", "CodeStore", "Usage", "s3_client"]

log = logging.getLogger(__name__)

ASKED_LATELY_S = 1.0
"""For this long an answer of S3 may serve requests that had been sent before S3 was asked."""

CLOCKS_DIFFER_S = 1.0
"""How much the clocks of a producer and of this host may differ."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Code:
    """Code that is ready to run.

    `path` holds regular files (0444, 0555 if executable), folders (0555) and relative symbolic links that end inside it.
    It stays until the `checkout` ends. `size_bytes` is the unpacked content. `cached`: nothing was downloaded.
    """

    path: Path
    sha256: str
    size_bytes: int
    fetch_ms: float
    unpack_ms: float
    cached: bool


@dataclass(frozen=True)
class _Checkout:
    """The object that one checkout asks for."""

    endpoint: str
    bucket: str
    key: str
    sha256: str | None
    sent_at: float | None

    @cached_property
    def source(self) -> str:
        """The object's name in the cache."""
        return source_name(self.endpoint, self.bucket, self.key)


class CodeStore:
    """All code of this host. Thread-safe; any number of processes may use the same data folder, also after a fork.

    All mutable state: `_have`, which code is known to have what is started, and `_answers`, when S3 was asked last for an object and
    its version.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits = ArchiveLimits.of(settings)
        self._source = Source(settings)
        self._answers: dict[str, tuple[float, ObjectVersion]] = {}
        self._have: set[tuple[str, str | HandlerModule]] = set()
        self._cache = Cache(settings.data_dir / "code", settings.code_cache_mb * MIB)

    def checkout(
        self,
        bucket: str,
        key: str,
        *,
        sha256: str | None = None,
        sent_at: float | None = None,
        required: str | HandlerModule,
    ) -> AbstractContextManager[Code]:
        """The code of an S3 object, kept on disk for the length of the `with` block.

        `sha256` (hex digest of the object) pins the code; `sent_at` is when the request was sent, in seconds since 1970, if known;
        `required` is the file or module that is started. Raises
        CodeNotFoundError, CodeCorruptError (both final) or CodeUnavailableError (retryable).
        """
        pinned = sha256.lower() if sha256 else None
        return self._checkout(_Checkout(self._settings.s3_endpoint_url, bucket, key, pinned, sent_at), required)

    def usage(self) -> CacheUsage:
        """What the cache holds."""
        return self._cache.usage()

    @contextmanager
    def _checkout(self, wanted: _Checkout, required: str | HandlerModule) -> Iterator[Code]:
        with self._local_trouble(wanted):
            entry, code = self._ready(wanted)
        try:
            if (code.sha256, required) not in self._have:
                self._check(wanted, code, required)
            yield code
        finally:
            entry.release()
            self._trim()

    def _check(self, wanted: _Checkout, code: Code, required: str | HandlerModule) -> None:
        with _about(wanted):
            check_required(code.path, required)
        if len(self._have) >= MOST_KNOWN:
            self._have.clear()
        self._have.add((code.sha256, required))

    def _ready(self, wanted: _Checkout) -> tuple[CacheEntry, Code]:
        started = time.perf_counter()
        while True:
            found = self._pinned(wanted)
            known = None if found else self._cache.record(wanted.source)
            found = found or self._unchanged(wanted, known)
            if found is not None:
                count(counters.CODE_LOOKUP, counters.HIT)
                entry, sha256 = found
                code = Code(entry.path, sha256, entry.unpacked.size_bytes, _ms_since(started), 0.0, cached=True)
                return entry, code
            with self._cache.fetching(wanted.source):
                if self._cache.record(wanted.source) == known:
                    return self._fetch(wanted, started)
            # Another process fetched it meanwhile: check the cache again.

    def _pinned(self, wanted: _Checkout) -> tuple[CacheEntry, str] | None:
        """The cached code of the digest that the request names. S3 is not asked."""
        entry = self._cache.use(wanted.sha256) if wanted.sha256 else None
        return (entry, wanted.sha256) if entry is not None and wanted.sha256 else None

    def _unchanged(self, wanted: _Checkout, known: SourceRecord | None) -> tuple[CacheEntry, str] | None:
        """The cached code, if the request names no digest and S3 still has the same object."""
        if wanted.sha256 or known is None or (entry := self._cache.use(known.sha256)) is None:
            return None
        try:
            if self._is_current(wanted, known):
                return entry, known.sha256
        except BaseException:
            entry.release()
            raise
        entry.release()
        log.info("%s has changed since it was fetched.", url(wanted.bucket, wanted.key))
        return None

    def _is_current(self, wanted: _Checkout, known: SourceRecord) -> bool:
        """Whether S3 has what was fetched last: now, or lately and after the request was sent."""
        asked_at, answer = self._answers.get(wanted.source, (0.0, None))
        now = time.time()
        if wanted.sent_at is not None and answer == known.version:
            is_new_enough = wanted.sent_at + CLOCKS_DIFFER_S <= asked_at
            if is_new_enough and 0 <= now - asked_at <= ASKED_LATELY_S:
                return True
        version = self._source.version(wanted.bucket, wanted.key)
        if len(self._answers) >= MOST_KNOWN:
            self._answers.clear()
        self._answers[wanted.source] = now, version
        return version == known.version

    def _fetch(self, wanted: _Checkout, started: float) -> tuple[CacheEntry, Code]:
        """Download, check, unpack and publish. One process at a time does this for each source."""
        count(counters.CODE_LOOKUP, counters.MISS)
        self._cache.sweep()
        with self._cache.workplace() as workplace:
            archive = workplace / "archive"
            download = self._source.download(wanted.bucket, wanted.key, archive)
            fetch_ms = _ms_since(started)
            if wanted.sha256 not in (None, download.sha256):
                raise CodeCorruptError(
                    f"{url(wanted.bucket, wanted.key)} has the SHA-256 {download.sha256}, and the request's codeSha256 says "
                    f"{wanted.sha256}: send the digest of the object that was uploaded"
                )
            unpacking = time.perf_counter()
            with _about(wanted):
                entry = self._cache.use(download.sha256) or self._unpack(workplace, archive, download.sha256)
        unpack_ms = _ms_since(unpacking)
        try:
            self._cache.remember(wanted.source, download.version, download.sha256)
        except BaseException:
            entry.release()
            raise
        log.info(
            "Fetched %s: %d bytes in %.0f ms, unpacked in %.0f ms, SHA-256 %s.",
            url(wanted.bucket, wanted.key), download.size_bytes, fetch_ms, unpack_ms, download.sha256,
        )  # fmt: skip
        code = Code(entry.path, download.sha256, entry.unpacked.size_bytes, fetch_ms, unpack_ms, cached=False)
        return entry, code

    def _unpack(self, workplace: Path, archive: Path, sha256: str) -> CacheEntry:
        draft = workplace / "draft"
        draft.mkdir(mode=0o700)
        tree = draft / "tree"
        tree.mkdir(mode=0o700)
        unpacked = unpack(archive, tree, self._limits)
        return self._cache.publish(draft, sha256, unpacked)

    @contextmanager
    def _local_trouble(self, wanted: _Checkout) -> Iterator[None]:
        """Turn errors of the local disk into CodeUnavailableError. If the disk is full, evict idle code."""
        try:
            yield
        except OSError as error:
            folder = self._settings.data_dir
            if error.errno in DISK_FULL:
                self._make_room()
                problem = f"the disk of {folder} is full: free some space, or lower NANOGRID_CODE_CACHE_MB"
            else:
                problem = f"{folder} cannot be used ({error}): check its owner, its permissions and the disk"
            raise CodeUnavailableError(f"{url(wanted.bucket, wanted.key)} could not be stored, {problem}") from error

    def _make_room(self) -> None:
        try:
            self._cache.empty()
        except OSError:
            log.warning("Could not evict code from a full disk.", exc_info=True)

    def _trim(self) -> None:
        try:
            self._cache.trim()
        except OSError:
            # The run is over and has its result; the next fetch evicts what remains.
            log.warning("Could not trim the code cache.", exc_info=True)


@contextmanager
def _about(wanted: _Checkout) -> Iterator[None]:
    """Add the object's address to errors about its content."""
    try:
        yield
    except CodeCorruptError as error:
        raise CodeCorruptError(f"{url(wanted.bucket, wanted.key)}: {error}") from error


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
