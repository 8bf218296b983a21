"""The code that `nanogrid invoke` was given, and what follows from it: the archive, the runtime, the function's name."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogrid.errors import CodeError, InvalidRequestError
from nanogrid.execution.code.packing import PackingLimits, pack_file, pack_folder
from nanogrid.execution.code.required import BESIDE, HandlerModule, in_a_folder, is_among

if TYPE_CHECKING:
    from nanogrid.runtimes import Runtime
    from nanogrid.settings import Settings

RUNTIME_OF_SUFFIX = {".py": "python", ".sh": "cpp"}
S3_URL = re.compile(r"s3://(?P<bucket>[^/]+)/(?P<key>.+)")
_SOURCE_SUFFIXES = {".c", ".cc", ".cpp", ".cxx"}


@dataclass(frozen=True)
class StoredCode:
    """Code that is already in S3."""

    bucket: str
    key: str

    @property
    def stem(self) -> str:
        """The last part of the key without its ending."""
        return self.key.rstrip("/").rpartition("/")[2].partition(".")[0]


@dataclass(frozen=True)
class LocalCode:
    """Code on this machine. `names` are the names at its top, from which the runtime is detected.

    If the code was packed or given together with one folder around it, `folder` is that folder and `inner` the names in it.
    """

    path: Path
    names: frozenset[str]
    is_archive: bool
    folder: str = ""
    inner: frozenset[str] = frozenset()

    @property
    def stem(self) -> str:
        """The folder's or file's name without its ending."""
        return self.path.resolve().name.partition(".")[0]


def find_source(text: str) -> StoredCode | LocalCode:
    """The code that an argument names. Raises CodeError if it is neither an s3:// URL nor an existing path."""
    if text.startswith("s3:"):
        match = S3_URL.fullmatch(text)
        if match is None:
            raise CodeError(f"{text!r} is not a usable S3 address: write s3://bucket/key")
        return StoredCode(match["bucket"], match["key"])
    path = Path(text)
    if not path.exists():
        raise CodeError(f"{text} does not exist: give a folder, a file, a zip or an s3:// URL")
    if path.is_dir():
        return _seen(path, _paths_in(path), is_archive=False)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _seen(path, archive.namelist(), is_archive=True)
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive_of_tape:
            return _seen(path, (member.name for member in archive_of_tape), is_archive=True)
    return LocalCode(path, frozenset({path.name}), is_archive=False)


def _paths_in(folder: Path) -> Iterator[str]:
    """The names in a folder and in its folders, but no deeper."""
    for child in folder.iterdir():
        yield child.name
        if child.is_dir():
            with suppress(OSError):
                yield from (f"{child.name}/{inner.name}" for inner in child.iterdir())


def _seen(path: Path, paths: Iterable[str], *, is_archive: bool) -> LocalCode:
    """The code that has these paths. Its `folder` is the only folder at the top, apart from those that tools put beside code."""
    inner: dict[str, set[str]] = {}
    for each in paths:
        top, *rest = [part for part in each.split("/") if part not in ("", ".")] or [""]
        inner.setdefault(top, set()).update(rest[:1])
    folders = [top for top, names in inner.items() if names and not top.startswith(BESIDE)]
    folder = folders[0] if len(folders) == 1 else ""
    return LocalCode(path, frozenset(inner), is_archive, folder, frozenset(inner.get(folder, ())))


def guess_runtime(source: StoredCode | LocalCode, settings: Settings, *, handler: str | None = None) -> str:
    """If a handler is named, the one runtime that has handlers; else the runtime whose required file the code has, or the
    runtime of a file's ending.

    Raises InvalidRequestError if no runtime fits, or more than one, and CodeError for code that is in a folder.
    """
    table = settings.runtime_table.items()
    if handler is not None:
        table = [(name, runtime) for name, runtime in table if runtime.supports_handler]
        if len(table) == 1:
            return table[0][0]
    accepted = ", ".join(name for name, _ in table)
    if isinstance(source, StoredCode):
        raise InvalidRequestError("runtime", f"cannot be detected from an s3:// URL: give --runtime ({accepted})")
    fitting = [name for name, runtime in table if runtime.required_file in source.names]
    if not fitting and source.path.suffix in RUNTIME_OF_SUFFIX:
        fitting = [RUNTIME_OF_SUFFIX[source.path.suffix]]
    if len(fitting) == 1:
        return fitting[0]
    files = " or ".join(runtime.required_file for _, runtime in table)
    if fitting:
        seen = f"it has the required files of {' and '.join(fitting)}"
    elif handler is not None:
        seen = f"{' and '.join(name for name, _ in table)} have handlers"
    else:
        _refuse_one_folder(source, [runtime.required_file for _, runtime in table])
        seen = f"it has no {files}"
    raise InvalidRequestError("runtime", f"cannot be detected from {source.path} ({seen}): give --runtime ({accepted})")


def pack(source: LocalCode, runtime: Runtime, settings: Settings, *, handler: str | None = None) -> bytes:
    """The archive to upload: a zip or tar unchanged, a folder zipped, or a file under the name that its runtime or its handler
    needs.

    Raises CodeError if what is started is missing, or if the archive is too large.
    """
    limits = PackingLimits(
        entries=settings.unpacked_files_limit,
        unpacked_bytes=settings.unpacked_limit_mb * 1024 * 1024,
        packed_bytes=settings.archive_limit_mb * 1024 * 1024,
    )
    required = runtime.required_file if handler is None else HandlerModule.of(handler)
    if source.is_archive:
        archive = _read_archive(source.path, limits)
        _require(source, source.names, required)
        return archive
    if source.path.is_dir():
        _require(source, source.names, required)
        return pack_folder(source.path, limits)
    _refuse_sources(source.path, runtime)
    keeps_its_name = isinstance(required, HandlerModule) and required.is_among({source.path.name})
    name = source.path.name if keeps_its_name else runtime.required_file
    _require(source, {name}, required)
    return pack_file(source.path, name, limits)


def _require(source: LocalCode, names: Iterable[str], required: str | HandlerModule) -> None:
    """Raise CodeError unless what is started is among the names at the top."""
    if is_among(names, required):
        return
    _refuse_one_folder(source, [required])
    raise CodeError(
        f"{source.path} has no {required}{', which this runtime starts' if isinstance(required, str) else ''}"
    )


def _refuse_one_folder(source: LocalCode, wanted: Iterable[str | HandlerModule]) -> None:
    """Raise CodeError if one of these is in the folder that was packed, or given, around the code."""
    for required in wanted:
        if is_among(source.inner, required):
            what = f"{source.path}: {required}{' is' if isinstance(required, str) else ', is'}"
            raise CodeError(
                in_a_folder(what, "archive", f"{source.folder}/")
                if source.is_archive
                else f"{what} not at the top of it but in the folder {source.folder + '/'!a}: give {source.path / source.folder}"
            )


def _read_archive(path: Path, limits: PackingLimits) -> bytes:
    size_bytes = path.stat().st_size
    if size_bytes > limits.packed_bytes:
        raise CodeError(f"{path} has {size_bytes} bytes: workers accept at most {limits.packed_bytes}")
    return path.read_bytes()


def _refuse_sources(path: Path, runtime: Runtime) -> None:
    """Raise CodeError for a C or C++ source: it cannot replace the script that compiles it."""
    if path.suffix in _SOURCE_SUFFIXES:
        raise CodeError(
            f"{path} is source code, and the runtime starts {runtime.required_file}: put both in a folder, "
            f"with a {runtime.required_file} such as: g++ -O2 -o main {path.name} && ./main"
        )
