"""The folders that a run may write to: emptied after a run, filled with the code and the payload before the next.

The rule: this is done as the function's user, when no process of the run lives any more, and so without a race. Whatever a run left there,
of any mode, depth, number and name, is removed, or the container is unclean. Of the folders themselves, everything that their owner can
change is reset: mode, times, attributes, flags. Of other things in memory, the times are reset.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH112, PTH115, PTH116, PTH211
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os
import stat
import time

from nanogrid_warm import folder_reset, kernel, paths

WORKSPACE = paths.WORKSPACE.encode()
OWNED = (paths.WORKSPACE, paths.RUN)
"""The folders that belong to the function's user."""
CODE = paths.CODE.encode()
FLOW_LABELS = "/proc/net/ip6_flowlabel"
SOCKETS = ("/proc/net/sockstat", "/proc/net/sockstat6")
CLOSING_S = 1.0
CLOSING_POLL_S = 0.005
TABLE_BYTES = 1 << 12
"""Enough for one of the kernel's tables. A larger buffer would be mapped and unmapped for each run."""


def _world_writable() -> list[str]:
    """Return the devices whose times every user may set: they are in memory and do not belong to the function's user."""
    return [
        entry.path
        for folder in ("/dev", "/dev/pts")
        for entry in os.scandir(folder)
        if entry.path not in paths.WRITABLE and entry.stat(follow_symlinks=False).st_mode & stat.S_IWOTH
    ]


WORLD_WRITABLE = _world_writable()
"""Listed once: no run can add to these folders."""


def clean(*, keep_code: bool = False) -> None:
    """Empty all writable folders, or all but the workspace. Raises OSError if something cannot be removed."""
    reset = folder_reset.reset if kernel.NAMES_STAY_IN_BUFFER else _reset
    for folder in paths.WRITABLE[keep_code:]:
        reset(folder, own=folder in OWNED)
    for path in WORLD_WRITABLE:
        try:
            os.utime(path, follow_symlinks=False)
        except OSError:  # a read-only mount, which a run could not write to either
            continue
    os.chdir(WORKSPACE)


class Network:
    """The kernel's tables of a network namespace that is the container's own. They are opened once: each `open` would create them anew."""

    def __init__(self) -> None:
        self._tables = [_open_table(path) for path in (*SOCKETS, FLOW_LABELS)]

    def close(self) -> None:
        """Close them, in a child."""
        for table in self._tables:
            if table >= 0:
                os.close(table)

    def require_nothing_left(self) -> None:
        """Raise OSError if a run has left a connection that does not close soon, or flow labels."""
        self.await_no_connections()
        self.require_no_flow_labels()

    def await_no_connections(self) -> None:
        """Wait until the kernel has closed the run's last connection. Raises OSError if that takes too long: the peer does not confirm
        the end, and the kernel would keep the connection's ports and addresses for minutes.
        """
        deadline = time.monotonic() + CLOSING_S
        while any(map(_count_connections, self._tables[:-1])):
            if time.monotonic() > deadline:
                raise OSError("the run left a connection that does not close")
            time.sleep(CLOSING_POLL_S)

    def await_no_sockets(self, own: int) -> None:
        """Wait until there are only `own` sockets. Raises OSError if that takes too long.

        A socket that still carries an open file of the run, in a message that nobody has received, outlives its processes for a moment.
        """
        deadline = time.monotonic() + CLOSING_S
        while _sockets_in(_read_table(self._tables[0])) > own:
            if time.monotonic() > deadline:
                raise OSError("the run left a socket that does not close")
            time.sleep(CLOSING_POLL_S)

    def require_no_flow_labels(self) -> None:
        """Raise OSError if a run has left flow labels of IPv6. The kernel keeps them for a time that the run has chosen."""
        if _read_table(self._tables[-1]).count(b"\n") > 1:  # the first line names the columns
            raise OSError("the run left flow labels in the kernel")


def count_sockets() -> int:
    """Return how many sockets this network namespace has."""
    table = _open_table(SOCKETS[0])
    try:
        return _sockets_in(_read_table(table))
    finally:
        if table >= 0:
            os.close(table)


def _sockets_in(table: bytes) -> int:
    for line in table.split(b"\n"):
        if line.startswith(b"sockets: used "):
            return int(line.split()[2])
    return 0


def _open_table(table: str) -> int:
    try:
        return os.open(table, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the kernel lacks the protocol
        return -1


def _read_table(table: int) -> bytes:
    return os.pread(table, TABLE_BYTES, 0) if table >= 0 else b""


def _count_connections(table: int) -> int:
    """Return the number of TCP connections, by the kernel's own count."""
    for line in _read_table(table).split(b"\n"):
        if line.startswith((b"TCP: inuse ", b"TCP6: inuse ")):
            return int(line.split()[2])
    return 0


def lay_out_result() -> None:
    """Create an empty file for the function's result."""
    os.close(os.open(paths.RESULT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def lay_out_payload(payload: int) -> int:
    """Create the payload's file and return a descriptor that reads it.

    `payload` is the host's descriptor. Its content is copied, so that the function opens a file of its own.
    """
    writer = os.open(paths.PAYLOAD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        _copy_content(payload, writer, os.fstat(payload).st_size)
    finally:
        os.close(writer)
    return os.open(paths.PAYLOAD, os.O_RDONLY | os.O_CLOEXEC)


def has_code() -> bool:
    """Return whether the container has its function's code."""
    return os.path.isdir(CODE)


def lay_out() -> None:
    """Copy the code into the workspace: the same files and times, owned by the function's user and writable for it."""
    _copy_folder(CODE, WORKSPACE)


def _reset(folder: str, *, own: bool) -> None:
    """Do what `folder_reset.reset` does if Python cannot call the C library. Names get into memory, so every run executes its command."""
    if own:
        os.chmod(folder, 0o700)
        for name in os.listxattr(folder):
            os.removexattr(folder, name)
    if os.path.isdir(folder):
        _empty(folder)
        os.utime(folder)


def _empty(folder: str) -> None:
    os.chdir(folder)
    pending = [_remove_files()]
    while pending:
        if not pending[-1]:
            pending.pop()
            if pending:
                os.chdir("..")
                os.rmdir(pending[-1].pop())
            continue
        name = pending[-1][-1]
        try:
            os.rmdir(name)
            pending[-1].pop()
        except OSError:
            os.chmod(name, 0o700)
            os.chdir(name)
            pending.append(_remove_files())


def _remove_files() -> list[bytes]:
    """Remove everything but folders from the working directory. Returns the names of its folders."""
    folders = []
    with os.scandir(b".") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name)
    return folders


def _copy_folder(source: bytes, target: bytes) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            there = target + b"/" + entry.name
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), there)
            elif entry.is_dir():
                os.mkdir(there, 0o700)
                _copy_folder(entry.path, there)
                _copy_times(entry.path, there)
            else:
                copy_file(entry.path, there)


def copy_file(source: bytes | str, target: bytes | str, accessed_ns: int | None = None) -> None:
    """Copy a file: the same content, executable bits and time of change, writable for its owner.

    `accessed_ns` is its time of access, if not that of its change.
    """
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(reader)
        mode = (stat.S_IMODE(status.st_mode) | stat.S_IWUSR) & 0o755
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            _copy_content(reader, writer, status.st_size)
            changed_ns = status.st_mtime_ns
            os.utime(writer, ns=(changed_ns if accessed_ns is None else accessed_ns, changed_ns))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_content(reader: int, writer: int, size: int) -> None:
    at = 0
    while at < size:
        sent = os.sendfile(writer, reader, at, size - at)
        if not sent:
            raise OSError(f"the file ends after {at} of {size} bytes")
        at += sent


def _copy_times(source: bytes, target: bytes) -> None:
    status = os.stat(source)
    os.chmod(target, (stat.S_IMODE(status.st_mode) | stat.S_IRWXU) & 0o755)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
