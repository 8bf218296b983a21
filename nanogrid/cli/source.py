"""What `nanogrid invoke` was pointed at, and what follows from it: the archive, the runtime, the function's name."""

from __future__ import annotations

import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogrid.errors import CodeError, InvalidRequestError
from nanogrid.packing import PackingLimits, pack_file, pack_folder

if TYPE_CHECKING:
    from nanogrid.runtimes import Runtime
    from nanogrid.settings import Settings

RUNTIME_OF_SUFFIX = {".py": "python", ".sh": "cpp"}
S3_URL = re.compile(r"s3://(?P<bucket>[^/]+)/(?P<key>.+)")
_SOURCE_SUFFIXES = {".c", ".cc", ".cpp", ".cxx"}


@dataclass(frozen=True)
class Stored:
    """Code that is in S3 already."""

    bucket: str
    key: str

    @property
    def stem(self) -> str:
        """The last part of the key without its ending."""
        return self.key.rstrip("/").rpartition("/")[2].partition(".")[0]


@dataclass(frozen=True)
class Local:
    """Code on this machine. `names` are the names at its top, to see which runtime it is for."""

    path: Path
    names: frozenset[str]
    is_archive: bool

    @property
    def stem(self) -> str:
        """The folder's or file's name without its ending."""
        return self.path.resolve().name.partition(".")[0]


def find_source(text: str) -> Stored | Local:
    """What an argument means. Raises CodeError when it is neither an s3:// URL nor something that exists."""
    if text.startswith("s3:"):
        match = S3_URL.fullmatch(text)
        if match is None:
            raise CodeError(f"{text!r} is no usable S3 address; write s3://bucket/key")
        return Stored(match["bucket"], match["key"])
    path = Path(text)
    if not path.exists():
        raise CodeError(f"{text} does not exist; give a folder, a file, a zip or an s3:// URL")
    if path.is_dir():
        return Local(path, frozenset(child.name for child in path.iterdir()), is_archive=False)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return Local(path, frozenset(archive.namelist()), is_archive=True)
    if tarfile.is_tarfile(path):
        return Local(path, frozenset(), is_archive=True)
    return Local(path, frozenset({path.name}), is_archive=False)


def guess_runtime(source: Stored | Local, settings: Settings) -> str:
    """The one runtime whose required file is there, else the one that a file's ending names.

    Raises InvalidRequestError where nothing, or more than one thing, is to be seen.
    """
    table = settings.runtime_table.items()
    accepted = ", ".join(name for name, _ in table)
    if isinstance(source, Stored):
        raise InvalidRequestError("runtime", f"cannot be seen from an s3:// URL; give --runtime ({accepted})")
    fitting = [name for name, runtime in table if runtime.required_file in source.names]
    if not fitting and source.path.suffix in RUNTIME_OF_SUFFIX:
        fitting = [RUNTIME_OF_SUFFIX[source.path.suffix]]
    if len(fitting) != 1:
        files = " or ".join(runtime.required_file for _, runtime in table)
        seen = f"it holds what {' and '.join(fitting)} start" if fitting else f"it holds no {files}"
        raise InvalidRequestError("runtime", f"cannot be seen from {source.path} ({seen}); give --runtime ({accepted})")
    return fitting[0]


def pack(source: Local, runtime: Runtime, settings: Settings, *, needs_required_file: bool) -> bytes:
    """The archive to upload: a zip or tar as it is, a folder zipped, a file under the name that its runtime starts."""
    limits = PackingLimits(
        entries=settings.unpacked_files_limit,
        unpacked_bytes=settings.unpacked_limit_mb * 1024 * 1024,
        packed_bytes=settings.archive_limit_mb * 1024 * 1024,
    )
    if source.is_archive:
        return _read_archive(source.path, limits)
    if not source.path.is_dir():
        _refuse_sources(source.path, runtime)
        return pack_file(source.path, runtime.required_file, limits)
    if needs_required_file and runtime.required_file not in source.names:
        raise CodeError(f"{source.path} holds no {runtime.required_file}, which this runtime starts")
    return pack_folder(source.path, limits)


def _read_archive(path: Path, limits: PackingLimits) -> bytes:
    size_bytes = path.stat().st_size
    if size_bytes > limits.packed_bytes:
        raise CodeError(f"{path} has {size_bytes} bytes; workers accept {limits.packed_bytes} at most")
    return path.read_bytes()


def _refuse_sources(path: Path, runtime: Runtime) -> None:
    """A C++ source cannot take the place of the script that compiles it."""
    if path.suffix in _SOURCE_SUFFIXES:
        raise CodeError(
            f"{path} is source code, and the runtime starts {runtime.required_file}: put both in a folder, "
            f"with a {runtime.required_file} such as: g++ -O2 -o main {path.name} && ./main"
        )
