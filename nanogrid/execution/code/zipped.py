"""Reads zip archives.

The rule: only entries that can be verified are accepted: stored or deflated, unencrypted, each with its own bytes in the
file and the right length and CRC. (Python unpacks bzip2 and LZMA inside a zip without a memory limit, so these are refused,
as most zip tools refuse them.)
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nanogrid.errors import CodeCorruptError
from nanogrid.execution.code.damage import damage_is_corrupt
from nanogrid.execution.code.entries import ArchiveEntry, EntryKind, corrupt, shown
from nanogrid.execution.code.limits import Meter
from nanogrid.execution.code.tree import LONGEST_LINK

MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
CHUNK_BYTES = 64 * 1024
"""Well below DIRECTORY_BYTES, so that reading contents never reaches the bound for the directory."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
METHOD_NAMES = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstandard"}
HEADER = struct.Struct("<4s5H3L2H")
"""Fixed part of a local file header; its last two numbers are the lengths of the name and of the extra field."""

DIRECTORY_BYTES_PER_ENTRY = 512
DIRECTORY_BYTES = 128 * 1024
ENCRYPTED = 0x1
UTF8_NAME = 0x800
MADE_ON_UNIX = 3
ACCEPTED_TYPES = (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""0: the packing tool recorded no type."""

FORBIDDEN = {stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}


class _BoundedFile:
    """A file that refuses reads of more than `largest` bytes: zipfile reads its whole directory at once."""

    def __init__(self, file: BinaryIO, meter: Meter) -> None:
        self._file = file
        self._meter = meter
        self._largest = DIRECTORY_BYTES + DIRECTORY_BYTES_PER_ENTRY * meter.limits.entries
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        wanted = self._largest + 1 if size < 0 else min(size, self._largest + 1)
        data = self._file.read(wanted)
        if len(data) > self._largest:
            raise self._meter.directory_too_large(self._largest)
        return data


def entries(path: Path, meter: Meter) -> Iterator[ArchiveEntry]:
    """The entries of a zip, in the order of its directory. Raises CodeCorruptError, also between entries."""
    with path.open("rb") as file:
        with damage_is_corrupt("the zip archive"):
            archive = zipfile.ZipFile(_BoundedFile(file, meter))  # zipfile needs no other methods
        with archive:
            infos = archive.infolist()
            _refuse_missing_entries(path, infos)
            _refuse_overlaps(file, archive, infos)
            for info in infos:
                yield _entry(archive, info, meter)


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: Meter) -> ArchiveEntry:
    name = _name(info)
    _refuse_unreadable(info, name)
    mode = info.external_attr >> 16 if info.create_system == MADE_ON_UNIX else 0
    kind = _kind(info, name, mode)
    if kind is EntryKind.LINK:
        return ArchiveEntry(name, kind, target=_link_target(archive, info, name, meter))
    if kind is EntryKind.FOLDER:
        return ArchiveEntry(name, kind)
    return ArchiveEntry(name, kind, executable=bool(mode & 0o111), chunks=_chunks(archive, info, name, meter))


def _name(info: zipfile.ZipInfo) -> str:
    """The entry's name. Unix tools, above all on macOS, write UTF-8 names without setting the flag for them."""
    if "\0" in info.orig_filename:
        raise corrupt(info.orig_filename, "has a NUL byte in its name: rename the file")
    if info.flag_bits & UTF8_NAME or info.create_system != MADE_ON_UNIX:
        return info.filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _refuse_unreadable(info: zipfile.ZipInfo, name: str) -> None:
    if info.flag_bits & ENCRYPTED:
        raise corrupt(name, "is encrypted: pack without a password")
    if info.compress_type not in METHODS:
        method = METHOD_NAMES.get(info.compress_type, f"number {info.compress_type}")
        raise corrupt(name, f"uses the compression method {method}: accepted in a zip are stored and deflate")


def _kind(info: zipfile.ZipInfo, name: str, mode: int) -> EntryKind:
    file_type = stat.S_IFMT(mode)
    if file_type in FORBIDDEN:
        raise corrupt(name, f"is a {FORBIDDEN[file_type]}: only files, folders and links are accepted")
    if file_type not in ACCEPTED_TYPES:
        raise corrupt(name, f"has the unknown file type {file_type:#o}: only files, folders and links are accepted")
    named_folder = name.endswith("/")
    if file_type and named_folder != (file_type == stat.S_IFDIR):
        raise corrupt(name, "is a folder by name or by type, but not by both: pack it again")
    if named_folder and info.file_size:
        raise corrupt(name, "is a folder with content: pack it again")
    if named_folder:
        return EntryKind.FOLDER
    return EntryKind.LINK if file_type == stat.S_IFLNK else EntryKind.FILE


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, meter: Meter) -> Iterator[bytes]:
    size = 0
    what = f"archive entry {shown(name)}"
    with damage_is_corrupt(what):
        source = archive.open(info)
    with source:
        while True:
            with damage_is_corrupt(what):
                chunk = source.read(CHUNK_BYTES)
            if not chunk:
                break
            meter.add_bytes(len(chunk), name)
            size += len(chunk)
            yield chunk
    if size != info.file_size:
        raise corrupt(name, f"is cut off: it has {size} of {info.file_size} bytes")


def _link_target(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, meter: Meter) -> str:
    if info.file_size > LONGEST_LINK * 4:
        raise corrupt(name, f"is a link with a target of {info.file_size} bytes: at most {LONGEST_LINK} are accepted")
    raw = b"".join(_chunks(archive, info, name, meter))
    return raw.decode("utf-8", "surrogateescape")


def _refuse_overlaps(file: BinaryIO, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> None:
    """Each entry must have its own bytes: bombs refer to one compressed block thousands of times."""
    end_of_last, last = 0, ""
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = _name(info)
        if info.header_offset < end_of_last:
            raise corrupt(name, f"overlaps with {shown(last)}: such archives are refused as bombs")
        file.seek(info.header_offset)
        header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGICS[0]):
            raise corrupt(name, "is damaged or cut off (no header where the archive says): pack and upload it again")
        *_, name_bytes, extra_bytes = HEADER.unpack(header)
        end_of_last = info.header_offset + HEADER.size + name_bytes + extra_bytes + info.compress_size
        last = name
    if end_of_last > archive.start_dir:
        raise corrupt(last, "overlaps with the archive's directory: pack and upload it again")


def _refuse_missing_entries(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Raise CodeCorruptError if the end record's count differs from the directory: zipfile itself does not check."""
    counted = _end_record_count(path)
    if counted not in (len(infos) & 0xFFFF, 0xFFFF):
        raise CodeCorruptError(
            f"the zip archive is damaged or cut off (its end says {counted} entries, its directory has {len(infos)}): "
            "pack and upload it again"
        )


def _end_record_count(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536 - 22))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    return int.from_bytes(tail[end + 10 : end + 12], "little")
