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
DEVICES = ("/dev", "/dev/pts")
"""Where there are things in memory that are not the function's, but that it may mark with a time."""
FLOW_LABELS = "/proc/net/ip6_flowlabel"
SOCKETS = ("/proc/net/sockstat", "/proc/net/sockstat6")
CLOSING_S = 1.0
CLOSING_LOOK_S = 0.005
CHUNK_BYTES = 1 << 20
TABLE_BYTES = 1 << 12
"""Enough of a table of the kernel's. A buffer for more would be mapped and unmapped for each run."""


def clean() -> None:
    """Empty all writable folders. Raises OSError for what cannot be removed."""
    for folder in OWN:
        os.chmod(folder, 0o700)
        if kernel.KEEPS_NAMES_OUT:
            emptying.clear_attributes(folder)
        else:
            for name in os.listxattr(folder):
                os.removexattr(folder, name)
    for folder in places.WRITABLE:
        if os.path.isdir(folder):
            (emptying.empty if kernel.KEEPS_NAMES_OUT else _empty)(folder)
    for folder in places.WRITABLE:
        if os.path.isdir(folder):
            os.utime(folder)
    for folder in DEVICES:
        _touch_all(folder)
    os.chdir(WORKSPACE)


def _touch_all(folder: str) -> None:
    """Give all that lies there the time of now, as far as its mode lets everybody do that: so a run could have done it too."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                os.utime(entry.path, follow_symlinks=False)
            except OSError:
                continue


def require_forgetful_network() -> None:
    """Raise OSError where a run has left flow labels of IPv6: the kernel keeps them for a time that the run has chosen."""
    try:
        file = os.open(FLOW_LABELS, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # there is no IPv6
        return
    lines = os.read(file, TABLE_BYTES).count(b"\n")
    os.close(file)
    if lines > 1:  # the first one names the columns
        raise OSError("the run has left flow labels in the kernel")


def await_quiet_network() -> None:
    """Wait until the kernel has closed the last connection of the run. Raises OSError where that takes long: who has to confirm
    the end does not, and the kernel would keep its ports and addresses for minutes.
    """
    deadline = time.monotonic() + CLOSING_S
    while any(map(_connections, SOCKETS)):
        if time.monotonic() > deadline:
            raise OSError("the run has left a connection that does not end")
        time.sleep(CLOSING_LOOK_S)


def _connections(table: str) -> int:
    """How many TCP connections there are, by the kernel's own count."""
    try:
        file = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        for line in os.read(file, TABLE_BYTES).split(b"\n"):
            if line.startswith((b"TCP: inuse ", b"TCP6: inuse ")):
                return int(line.split()[2])
    finally:
        os.close(file)
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
        at, size = 0, os.fstat(payload).st_size
        while at < size:
            at += os.sendfile(writer, payload, at, size - at)
    finally:
        os.close(writer)
    return os.open(places.PAYLOAD, os.O_RDONLY | os.O_CLOEXEC)


def has_code() -> bool:
    """Whether the container has got its function."""
    return os.path.isdir(CODE)


def lay_out() -> None:
    """Copy the code into the workspace: the same files and times, owned by the function's user and writable for it."""
    _copy_folder(CODE, WORKSPACE)


def _empty(folder: str) -> None:
    """The same where Python cannot call the C library. It sees names, and every run there is a new program's."""
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
            while True:
                data = os.read(reader, CHUNK_BYTES)
                if not data:
                    break
                view = memoryview(data)
                while view:
                    view = view[os.write(writer, view) :]
            os.utime(writer, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_times(source: bytes, target: bytes) -> None:
    status = os.stat(source)
    os.chmod(target, (stat.S_IMODE(status.st_mode) | stat.S_IRWXU) & 0o755)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
