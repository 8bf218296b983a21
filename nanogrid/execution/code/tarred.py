"""Reads tar archives, plain or compressed with gzip, bzip2 or xz.

The rule: the decompressed bytes pass through a counter once, forwards; headers have a separate budget. So neither a
crafted header nor a bomb gets more memory or time than the limits allow, whatever the standard library would do with it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from nanogrid.errors import CodeCorruptError
from nanogrid.execution.code.damage import damage_is_corrupt
from nanogrid.execution.code.entries import ArchiveEntry, EntryKind, corrupt
from nanogrid.execution.code.limits import Meter

CHUNK_BYTES = 256 * 1024
HEADER_BYTES_PER_ENTRY = 4096
HEADER_BYTES = 1024 * 1024
XZ_MEMORY_BYTES = 160 * 1024 * 1024
"""Enough for `xz -9`, which needs 65 MiB to unpack; a crafted header may ask for 4 GiB."""


class _XzStream(io.RawIOBase):
    """Decompressed bytes of one or more xz streams, with a memory limit, which lzma.open does not support."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ahead = b""
        self._decoder = self._new_decoder()

    @staticmethod
    def _new_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # RawIOBase hands over a writable buffer
        data = b""
        while not data:
            if self._decoder.eof:
                if not self._next_stream():
                    return 0
            elif not self._ahead and self._decoder.needs_input:
                self._ahead = self._file.read(CHUNK_BYTES)
                if not self._ahead:
                    raise EOFError("xz stream ends early")
            data = self._decoder.decompress(self._ahead, len(buffer))
            self._ahead = b""
        buffer[: len(data)] = data
        return len(data)

    def _next_stream(self) -> bool:
        """Continue with the stream after the one that ended; zeros between streams are padding."""
        ahead = self._decoder.unused_data
        while not (ahead := ahead.lstrip(b"\0")):
            ahead = self._file.read(CHUNK_BYTES)
            if not ahead:
                return False
        self._ahead, self._decoder = ahead, self._new_decoder()
        return True


def _open_xz(file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(_XzStream(file), CHUNK_BYTES))


OPENERS: dict[bytes, tuple[str, Callable[[BinaryIO], BinaryIO]]] = {
    b"\x1f\x8b": ("gzip", lambda file: cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))),
    b"BZh": ("bzip2", lambda file: cast("BinaryIO", bz2.BZ2File(file, "rb"))),
    b"\xfd7zXZ\0": ("xz", _open_xz),
}
"""First bytes of a file → the name of its compression, and its reader."""


def looks_like_tar(block: bytes) -> bool:
    """Whether a file that starts with these 512 bytes is a plain tar. One that is all zeros is an empty tar."""
    if len(block) == tarfile.BLOCKSIZE and not block.strip(b"\0"):
        return True
    try:
        tarfile.TarInfo.frombuf(block[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return block[257:262] == b"ustar"
    return True


class _ForwardStream:
    """The decompressed archive: tarfile reads headers from it (`read`), this module reads contents (`contents`)."""

    def __init__(self, raw: BinaryIO, meter: Meter) -> None:
        self._raw = raw
        self._meter = meter
        self._position = 0
        self._header_allowance = HEADER_BYTES + HEADER_BYTES_PER_ENTRY * meter.limits.entries
        self._headers_left = self._header_allowance
        self.last_header = b""
        self.name_of_entry = "(first header)"

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise CodeCorruptError("the tar archive is damaged (a header points backwards): pack and upload it again")
        while self._position < position:
            if not self._take(min(CHUNK_BYTES, position - self._position)):
                break
        return self._position

    def read(self, size: int) -> bytes:
        """Read a header. The budget is checked first, since a forged size may claim gigabytes."""
        if not 0 <= size <= self._headers_left:
            raise self._meter.directory_too_large(self._header_allowance)
        self._headers_left -= size
        self.last_header = self._take(size)
        return self.last_header

    def contents(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        self.seek(member.offset_data)
        left = member.size
        while left:
            chunk = self._take(min(CHUNK_BYTES, left))
            if not chunk:
                raise corrupt(member.name, f"is cut off: {left} of {member.size} bytes are missing")
            left -= len(chunk)
            yield chunk

    def expect_end(self) -> None:
        """Read to the end, so that the decompressor verifies its checksums. After the end mark only zeros are allowed."""
        if len(self.last_header) != tarfile.BLOCKSIZE or self.last_header.strip(b"\0"):
            raise CodeCorruptError("the tar archive is damaged or cut off (no end mark): pack and upload it again")
        while chunk := self._take(CHUNK_BYTES):
            if chunk.strip(b"\0"):
                raise CodeCorruptError("the tar archive has data after its end mark: pack everything into one archive")

    def _take(self, size: int) -> bytes:
        with damage_is_corrupt("the tar archive"):
            data = self._raw.read(size)
        self._position += len(data)
        self._meter.add_bytes(len(data), self.name_of_entry)
        return data


def entries(path: Path, meter: Meter, open_raw: Callable[[BinaryIO], BinaryIO] | None) -> Iterator[ArchiveEntry]:
    """The entries of a tar, in their order. Raises CodeCorruptError, also between entries."""
    with path.open("rb") as file:
        stream = _ForwardStream(open_raw(file) if open_raw else file, meter)
        archive = _open(stream)
        # If the first header is the end mark, there is no entry to ask for (Python 3.10 would seek before the start).
        while stream.last_header.strip(b"\0"):
            with damage_is_corrupt("the tar archive"):
                member = archive.next()
            if member is None:
                break
            stream.name_of_entry = member.name
            yield _entry(member, stream)
        stream.expect_end()


def _open(stream: _ForwardStream) -> tarfile.TarFile:
    try:
        with damage_is_corrupt("the tar archive"):
            return tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
    except CodeCorruptError as error:
        if stream.last_header and not looks_like_tar(stream.last_header):
            raise CodeCorruptError(
                "the object is compressed but contains no tar: compress a tar, or upload a zip"
            ) from error
        raise


def _entry(member: tarfile.TarInfo, stream: _ForwardStream) -> ArchiveEntry:
    name = member.name
    if member.size < 0:
        raise corrupt(name, "has a negative size: pack it again")
    if member.issparse():
        raise corrupt(name, "is a sparse file: pack it without --sparse")
    if member.isreg():
        return ArchiveEntry(name, EntryKind.FILE, executable=bool(member.mode & 0o111), chunks=stream.contents(member))
    if member.isdir():
        return ArchiveEntry(name, EntryKind.FOLDER)
    if member.issym():
        return ArchiveEntry(name, EntryKind.LINK, target=member.linkname)
    if member.islnk():
        return ArchiveEntry(name, EntryKind.HARD_LINK, target=member.linkname)
    kind = (
        "device" if member.ischr() or member.isblk() else "fifo" if member.isfifo() else f"type {member.type!r} entry"
    )
    raise corrupt(name, f"is a {kind}: only files, folders and links are accepted")
