"""The folders that a run may write to: emptied after a run, filled with the code and the payload before the next.

The rule: done as the function's user, when no process of the run lives any more, and so without a race; whatever a run left
there, of whatever mode, depth, number and name, goes, or the container is unclean. Of the folders themselves, what their
owner can change is as it was: mode, times, attributes, flags; of what else there is in memory, times.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH112, PTH115, PTH116, PTH211
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os
import stat
import time

from nanogrid_warm import emptying, kernel, places

WORKSPACE = places.WORKSPACE.encode()
OWN = (places.WORKSPACE, places.RUN)
"""Those that belong to the function's user."""
CODE = places.CODE.encode()
FLOW_LABELS = "/proc/net/ip6_flowlabel"
SOCKETS = ("/proc/net/sockstat", "/proc/net/sockstat6")
CLOSING_S = 1.0
CLOSING_LOOK_S = 0.005
TABLE_BYTES = 1 << 12
"""Enough of a table of the kernel's. A buffer for more would be mapped and unmapped for each run."""


def _touchable() -> list[str]:
    """What everybody may give the time of now, among the devices: things in memory that are not the function's."""
    return [
        entry.path
        for folder in ("/dev", "/dev/pts")
        for entry in os.scandir(folder)
        if entry.path not in places.WRITABLE and entry.stat(follow_symlinks=False).st_mode & stat.S_IWOTH
    ]


TOUCHABLE = _touchable()
"""Looked for once: no run can add to these folders."""


def clean() -> None:
    """Empty all writable folders. Raises OSError for what cannot be removed."""
    renew = emptying.renew if kernel.KEEPS_NAMES_OUT else _renew
    for folder in places.WRITABLE:
        renew(folder, own=folder in OWN)
    for path in TOUCHABLE:
        try:
            os.utime(path, follow_symlinks=False)
        except OSError:  # a mount that cannot be written to: then a run could not either
            continue
    os.chdir(WORKSPACE)


class Network:
    """The kernel's tables of a network namespace that is the container's own. Opened once: each look would make them anew."""

    def __init__(self) -> None:
        self._tables = [_opened(path) for path in (*SOCKETS, FLOW_LABELS)]

    def close(self) -> None:
        """Close them, in a child."""
        for table in self._tables:
            if table >= 0:
                os.close(table)

    def await_quiet(self) -> None:
        """Wait until the kernel has closed the last connection of the run. Raises OSError where that takes long: who has to
        confirm the end does not, and the kernel would keep its ports and addresses for minutes.
        """
        deadline = time.monotonic() + CLOSING_S
        while any(map(_connections, self._tables[:-1])):
            if time.monotonic() > deadline:
                raise OSError("the run has left a connection that does not end")
            time.sleep(CLOSING_LOOK_S)

    def require_forgetful(self) -> None:
        """Raise OSError where a run has left flow labels of IPv6: the kernel keeps them for a time that the run has chosen."""
        if _content(self._tables[-1]).count(b"\n") > 1:  # the first line names the columns
            raise OSError("the run has left flow labels in the kernel")


def _opened(table: str) -> int:
    try:
        return os.open(table, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # there is no such protocol
        return -1


def _content(table: int) -> bytes:
    return os.pread(table, TABLE_BYTES, 0) if table >= 0 else b""


def _connections(table: int) -> int:
    """How many TCP connections there are, by the kernel's own count."""
    for line in _content(table).split(b"\n"):
        if line.startswith((b"TCP: inuse ", b"TCP6: inuse ")):
            return int(line.split()[2])
    return 0


def lay_out_result() -> None:
    """Put an empty file where the function may write its result."""
    os.close(os.open(places.RESULT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def lay_out_payload(payload: int) -> int:
    """Put the payload where the function finds it; a descriptor that reads it there.

    `payload` is a descriptor of the host's, whose content is copied: what the function opens is its own file.
    """
    writer = os.open(places.PAYLOAD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        _copy_content(payload, writer, os.fstat(payload).st_size)
    finally:
        os.close(writer)
    return os.open(places.PAYLOAD, os.O_RDONLY | os.O_CLOEXEC)


def has_code() -> bool:
    """Whether the container has got its function."""
    return os.path.isdir(CODE)


def lay_out() -> None:
    """Copy the code into the workspace: the same files and times, owned by the function's user and writable for it."""
    _copy_folder(CODE, WORKSPACE)


def _renew(folder: str, *, own: bool) -> None:
    """`emptying.renew` where Python cannot call the C library. It sees names, and every run there is a new program's."""
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
    """Remove what is no folder from the working directory; the names of its folders."""
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
                _copy_file(entry.path, there)


def _copy_file(source: bytes, target: bytes) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(reader)
        mode = (stat.S_IMODE(status.st_mode) | stat.S_IWUSR) & 0o755
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            _copy_content(reader, writer, status.st_size)
            os.utime(writer, ns=(status.st_mtime_ns, status.st_mtime_ns))
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
