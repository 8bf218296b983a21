"""A workspace that is kept between runs: what a run has not touched is not copied again.

The rule: after a run, every file, folder and attribute is what it would be in a fresh copy. The kernel reports what a run changes: each folder has an
inotify watch, and no process of a run ever holds the descriptor. Change times alone would not do: a file in memory can be changed through a mapping
without a new change time, but its descriptor must be opened for writing and closed, and that is reported. Three ways around a report are
closed elsewhere: `syscalls.py` refuses file flags and io_uring, `workspace.Network` waits until no socket that could carry an open file is left.
A file that a run has reached by a second name, in a folder of its own, has a new change time: if a run has created folders, all times are compared.

The first process only sees whether there are reports. One-shot children read and repair, as the function's user, when no process of a run is alive.

The modules of packages keep their compiled code: a one-shot child compiles what runs have compiled, from the read-only code, and never keeps what a
run has written.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH112, PTH113, PTH114, PTH115, PTH116, PTH118, PTH119, PTH120, PTH123, PTH208, PTH211, S103, S302
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _warnings
import errno
import marshal
import os
import stat
import sys

from nanogrid_warm import folder_reset, kernel, paths, vendored, workspace

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Iterable, Iterator
    from typing import Any

UNREAD_S = 4_102_444_800
"""The access time of each file and folder (in 2100). The kernel does not renew it when a run reads, so no run can see what another one has read."""
UNREAD_NS = UNREAD_S * 1_000_000_000
CACHE = "__pycache__"
BYTECODE = ".pyc"
EVENT_BYTES = 1 << 16
EVENT_HEADER = 16

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF = 0x400, 0x800
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
IN_ONLYDIR, IN_ISDIR = 0x01000000, 0x40000000
CHANGES = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
WATCHED = CHANGES | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
LOST = IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED | IN_DELETE_SELF | IN_MOVE_SELF
"""After one of these events the whole workspace is laid out anew."""


class LostTrackError(Exception):
    """What a run has changed cannot be told from the reports."""


class KeptWorkspace:
    """The two descriptors that stay in the first process: the reports, and a memory file that says what the workspace holds."""

    def __init__(self, reports: int, record: int) -> None:
        self.reports = reports
        self.record = record

    def close(self) -> None:
        """Close both, in a child before any code of the function runs, or for good."""
        os.close(self.reports)
        os.close(self.record)


# -- in one-shot children


class Layout:
    """What the workspace holds: its folders, in the order of their watches, and inode and change time of each file."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.files: dict[str, tuple[int, int]] = {}
        self.refused: list[str] = []
        """Sources that have no compiled code, because compiling them fails or warns, as it then does in each run."""

    def write(self, record: int) -> None:
        """Write it to the memory file."""
        os.ftruncate(record, 0)
        os.pwrite(record, marshal.dumps((self.folders, self.files, self.refused)), 0)

    @classmethod
    def read(cls, record: int) -> Layout:
        """Return what `write` has written."""
        layout = cls()
        data = os.pread(record, os.fstat(record).st_size, 0)
        layout.folders, layout.files, layout.refused = marshal.loads(data)
        return layout

    def remember(self, path: str) -> None:
        """Remember a file as it is now."""
        status = os.lstat(_target(path))
        self.files[path] = (status.st_ino, status.st_ctime_ns)


def lay_out(sources: Iterable[str]) -> tuple[int, int]:
    """Copy the code into the empty workspace and watch it. Returns the descriptors for `KeptWorkspace`. Raises OSError.

    `sources` are modules of packages to compile, relative to the code.
    """
    layout = Layout()
    _copy_folder("", layout)
    reports = kernel.inotify()
    record = os.memfd_create("workspace", os.MFD_CLOEXEC)
    for source in sources:
        _compile(source, layout)
    for folder in layout.folders:
        _set_times(folder)
    for number, folder in enumerate(layout.folders, 1):
        if kernel.watch(reports, _target(folder), WATCHED) != number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    layout.write(record)
    return reports, record


def repair(reports: int, record: int) -> None:
    """Put right what the reports tell. Raises LostTrackError if everything must be laid out anew, OSError if something cannot be put right."""
    layout = Layout.read(record)
    changed, in_new_folder = _read_reports(reports, layout)
    if in_new_folder:
        changed.update(_with_other_times(layout, changed))
    folders = {folder for folder, _ in changed}
    for folder in folders:
        os.chmod(_target(folder), 0o700)
    for folder, name in sorted(changed):
        if name:
            _restore(os.path.join(folder, name), layout, reports)
    for folder in folders:
        _clear_attributes(_target(folder))
        _set_times(folder)
    while _read(reports):  # what was just put right is reported too
        continue
    layout.write(record)


def compiled_by_runs() -> list[str]:
    """Return the sources of packages, relative to the code, whose compiled code is in the workspace."""
    found = []
    for root in vendored.roots():
        top = paths.WORKSPACE + root[len(paths.CODE) :]
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not os.path.islink(os.path.join(folder, name))]
            if os.path.basename(folder) == CACHE:
                found += [source for name in names if (source := _source_of(folder[len(paths.WORKSPACE) + 1 :], name))]
    return found


def _target(path: str) -> str:
    return f"{paths.WORKSPACE}/{path}" if path else paths.WORKSPACE


def _source(path: str) -> str:
    return f"{paths.CODE}/{path}" if path else paths.CODE


# -- copying


def _copy_folder(folder: str, layout: Layout) -> None:
    layout.folders.append(folder)
    with os.scandir(_source(folder)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(_target(path), 0o700)
                _copy_folder(path, layout)
            else:
                _copy_entry(path, layout)


def _copy_entry(path: str, layout: Layout) -> None:
    """Copy a file or a link."""
    source, target = _source(path), _target(path)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    else:
        workspace.copy_file(source, target, UNREAD_NS)
    layout.remember(path)


def _set_times(folder: str) -> None:
    """Set a folder's mode and times. Its own content changes them, so this comes last."""
    target = _target(folder)
    if not folder:
        os.chmod(target, 0o700)
        os.utime(target, ns=(UNREAD_NS, os.stat(paths.CODE).st_mtime_ns))
    elif os.path.basename(folder) == CACHE and not os.path.isdir(_source(folder)):
        os.chmod(target, 0o755)
        os.utime(target, ns=(UNREAD_NS, os.stat(_source(os.path.dirname(folder))).st_mtime_ns))
    else:
        status = os.stat(_source(folder))
        os.chmod(target, (status.st_mode | stat.S_IRWXU) & 0o755)
        os.utime(target, ns=(UNREAD_NS, status.st_mtime_ns))


# -- putting right


def _read_reports(reports: int, layout: Layout) -> tuple[set[tuple[str, str]], bool]:
    """Return the changed entries as folder and name ("" for the folder itself), and whether a run has created folders."""
    changed: set[tuple[str, str]] = set()
    in_new_folder = False
    while data := _read(reports):
        for number, mask, name in _events(data):
            if mask & LOST or not 0 < number <= len(layout.folders):
                raise LostTrackError
            in_new_folder = in_new_folder or bool(mask & IN_ISDIR and mask & (IN_CREATE | IN_MOVED_TO))
            changed.add((layout.folders[number - 1], os.fsdecode(name)))
    return changed, in_new_folder


def _read(reports: int) -> bytes:
    try:
        return os.read(reports, EVENT_BYTES)
    except BlockingIOError:
        return b""


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield watch, mask and name of each event: `struct inotify_event`."""
    at = 0
    while at < len(data):
        number, mask, _, size = (
            int.from_bytes(data[at + offset : at + offset + 4], sys.byteorder) for offset in range(0, EVENT_HEADER, 4)
        )
        yield number, mask, data[at + EVENT_HEADER : at + EVENT_HEADER + size].rstrip(b"\0")
        at += EVENT_HEADER + size


def _with_other_times(layout: Layout, changed: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each file that has another inode or change time than it had, besides those in `changed`."""
    for path, known in layout.files.items():
        entry = os.path.split(path)
        if entry in changed:
            continue
        try:
            status = os.lstat(_target(path))
        except OSError:
            yield entry
            continue
        if (status.st_ino, status.st_ctime_ns) != known:
            yield entry


def _restore(path: str, layout: Layout, reports: int) -> None:
    """Make an entry what it is in the code. Raises LostTrackError for a folder of the code that is none any more."""
    target, is_folder = _target(path), os.path.isdir(_source(path)) and not os.path.islink(_source(path))
    if path in layout.folders:
        if not os.path.isdir(target) or os.path.islink(target):
            raise LostTrackError
        _clear_attributes(target)
        _set_times(path)
        return
    if is_folder:
        raise LostTrackError
    compiled = _compiled_in(path) if os.path.basename(path) == CACHE else []
    _remove(target)
    layout.files.pop(path, None)
    if os.path.lexists(_source(path)):
        _copy_entry(path, layout)
    elif compiled:
        for source in compiled:
            _compile(source, layout)
        if path in layout.folders:
            _set_times(path)
            if kernel.watch(reports, target, WATCHED) != len(layout.folders):
                raise LostTrackError
    elif source := _source_of(*os.path.split(path)):
        _compile(source, layout)


def _remove(target: str) -> None:
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        folder_reset.reset(target, own=True)
        os.chdir(paths.WORKSPACE)
        os.rmdir(target)
    else:
        os.unlink(target)


def _clear_attributes(target: str) -> None:
    file = os.open(target, folder_reset.FOLDER)
    try:
        folder_reset.clear_attributes(file, target)
    finally:
        os.close(file)


# -- compiled code


def _compiled_in(folder: str) -> list[str]:
    """Return the sources of packages whose compiled code a run has put into this folder."""
    if not os.path.isdir(_target(folder)) or os.path.islink(_target(folder)):
        return []
    return [source for name in os.listdir(_target(folder)) if (source := _source_of(folder, name))]


def _source_of(folder: str, name: str) -> str:
    """Return the source in a package whose compiled code has this name in this folder; "" if there is none."""
    parent, last = os.path.split(folder)
    stem, _, rest = name.partition(".")
    if last != CACHE or rest != f"{sys.implementation.cache_tag}{BYTECODE}":
        return ""
    path = os.path.join(parent, stem + ".py")
    is_file = os.path.isfile(_source(path)) and not os.path.islink(_source(path))
    return path if is_file and vendored.is_package_file(_target(path)) else ""


def _compile(path: str, layout: Layout) -> None:
    """Write the compiled code of a source as Python would."""
    if path in layout.refused:
        return
    parent, name = os.path.split(path)
    folder = os.path.join(parent, CACHE)
    target = os.path.join(folder, f"{name[:-3]}.{sys.implementation.cache_tag}{BYTECODE}")
    if os.path.lexists(_source(target)):
        return
    try:
        data = _bytecode(path)
        if folder not in layout.folders:
            os.mkdir(_target(folder), 0o755)
            layout.folders.append(folder)
        file = os.open(_target(target), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, data)
            os.utime(file, ns=(UNREAD_NS, os.stat(_source(path)).st_mtime_ns))
        finally:
            os.close(file)
    except Exception:  # noqa: BLE001  # what does not compile, or warns, does so in each run, as ever
        layout.refused.append(path)
        return
    layout.remember(target)


def _bytecode(path: str) -> bytes:
    external: Any = sys.modules["_frozen_importlib_external"]
    filters: Any = _warnings
    filters.filters.insert(0, ("error", None, Warning, None, 0))
    filters._filters_mutated()
    try:
        with open(_source(path), "rb") as file:
            source = file.read()
            modified = int(os.fstat(file.fileno()).st_mtime)
        code = compile(source, _target(path), "exec", dont_inherit=True)
        return bytes(external._code_to_timestamp_pyc(code, modified, len(source)))
    finally:
        del filters.filters[0]
        filters._filters_mutated()
