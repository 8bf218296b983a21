"""Packs a folder or a file into the zip that is uploaded as a function's code.

The rule: the same tree gives the same bytes, wherever and whenever it is packed, so that its SHA-256 names it.
Names are sorted, times are fixed, owners are left out, and only the executable bit of the permissions is kept.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogrid.errors import CodeError

SKIPPED_NAMES = frozenset({".git", "__pycache__", ".venv", "node_modules"})
"""Left out at every depth. No ignore file is read: the folder alone decides what is packed."""

SKIPPED_SUFFIX = ".pyc"
EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
STORE_BEYOND_RATIO = 100
"""A file with a higher compression ratio is stored uncompressed: workers refuse archives that unpack like a bomb."""

_MIB = 1024 * 1024


@dataclass(frozen=True)
class PackingLimits:
    """What a worker with default settings accepts."""

    entries: int = 10_000
    unpacked_bytes: int = 512 * _MIB
    packed_bytes: int = 256 * _MIB


@dataclass(frozen=True)
class _ZipEntry:
    """One name in the archive: a file, or a folder that is empty."""

    name: str
    path: Path
    is_folder: bool = False


def pack_folder(folder: Path, limits: PackingLimits | None = None) -> bytes:
    """The zip of everything below `folder`.

    A link inside the tree is packed as the file or folder it points to. Raises CodeError for a link out of the tree, a
    device, pipe or socket, a name that is not UTF-8, an empty tree, and an exceeded limit.
    """
    limits = limits or PackingLimits()
    root = folder.resolve()
    entries = []
    for entry in _walk(root, root, "", (root,)):
        entries.append(entry)
        if len(entries) > limits.entries:
            raise CodeError(f"{folder} has more than {limits.entries} files: pack only what the function needs")
    if all(entry.is_folder for entry in entries):
        raise CodeError(f"{folder} has no files, so there is nothing to run")
    return _zip(sorted(entries, key=lambda entry: entry.name), limits)


def pack_file(path: Path, name: str, limits: PackingLimits | None = None) -> bytes:
    """The zip of one file under the name that its runtime starts."""
    _require_regular(path, path.name)
    return _zip([_ZipEntry(name, path)], limits or PackingLimits())


def _walk(root: Path, folder: Path, prefix: str, ancestors: tuple[Path, ...]) -> Iterator[_ZipEntry]:
    """Every entry below `folder`. `ancestors` are the real folders above it: a link to one of them would never end."""
    kept = [child for child in _children(folder) if not _is_skipped(child.name)]
    if not kept and prefix:
        yield _ZipEntry(prefix, folder, is_folder=True)
    for child in kept:
        name = prefix + _encodable(child)
        real = _resolve_inside(root, child, name) if child.is_symlink() else child
        if real.is_dir():
            if real in ancestors:
                raise CodeError(f"{name} is a link to a folder that contains it: remove the link")
            yield from _walk(root, real, name + "/", (*ancestors, real))
        else:
            _require_regular(real, name)
            yield _ZipEntry(name, real)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as unreadable:
        raise CodeError(f"{folder} cannot be read: {unreadable.strerror}") from unreadable


def _is_skipped(name: str) -> bool:
    return name in SKIPPED_NAMES or name.endswith(SKIPPED_SUFFIX)


def _encodable(path: Path) -> str:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise CodeError(f"{os.fsencode(path)!r} has a name that is not UTF-8: rename it") from None
    return path.name


def _resolve_inside(root: Path, link: Path, name: str) -> Path:
    try:
        real = link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: how Python before 3.13 reports links that go in circles
        raise CodeError(f"{name} is a link to '{link.readlink()}', which does not exist: remove it") from None
    if not real.is_relative_to(root):
        raise CodeError(
            f"{name} is a link to '{link.readlink()}', outside of the folder: replace the link with the file itself"
        )
    return real


def _require_regular(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as missing:
        raise CodeError(f"{path} cannot be read: {missing.strerror}") from missing
    if not stat.S_ISREG(mode):
        raise CodeError(f"{name} is neither a file nor a folder but a device, pipe or socket: remove it")


def _zip(entries: list[_ZipEntry], limits: PackingLimits) -> bytes:
    packed, unpacked_bytes = io.BytesIO(), 0
    with zipfile.ZipFile(packed, "w") as archive:
        for entry in entries:
            data = b"" if entry.is_folder else _read(entry.path, limits.unpacked_bytes - unpacked_bytes, limits)
            unpacked_bytes += len(data)
            archive.writestr(_zip_info(entry, data), data)
            if packed.tell() > limits.packed_bytes:
                raise CodeError(f"the archive is larger than {_mib(limits.packed_bytes)}, the most that workers accept")
    return packed.getvalue()


def _read(path: Path, room_bytes: int, limits: PackingLimits) -> bytes:
    """The file's bytes. Never reads much more than the remaining room, whatever the file's size."""
    try:
        with path.open("rb") as file:
            data = file.read(room_bytes + 1)
    except OSError as unreadable:
        raise CodeError(f"{path} cannot be read: {unreadable.strerror}") from unreadable
    if len(data) > room_bytes:
        raise CodeError(
            f"the files are larger than {_mib(limits.unpacked_bytes)} in total, the most that workers accept"
        )
    return data


def _zip_info(entry: _ZipEntry, data: bytes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(entry.name, EARLIEST_ZIP_TIME)
    info.create_system = 3  # Unix: otherwise the permissions below are ignored
    if entry.is_folder:
        info.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10
        return info
    is_executable = bool(entry.path.stat().st_mode & 0o111)
    info.external_attr = (stat.S_IFREG | (0o755 if is_executable else 0o644)) << 16
    info.compress_type = _compression(data)
    return info


def _compression(data: bytes) -> int:
    if len(data) > _MIB and len(data) > STORE_BEYOND_RATIO * len(zlib.compress(data, 1)):
        return zipfile.ZIP_STORED
    return zipfile.ZIP_DEFLATED


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:g} MiB"
