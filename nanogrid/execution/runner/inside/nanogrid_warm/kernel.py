"""System calls that Python has no function for: capabilities, the right to read one's own /proc, pages, a folder's flags.

The rule: this module needs only `_ctypes`, not the package around it. Without `_ctypes`, `AVAILABLE` is false and the calls do nothing.
"""

# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import errno
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Iterable
    from typing import Any

try:
    import _ctypes
except ImportError:
    _ctypes = None  # type: ignore[assignment]

PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
LAST_CAPABILITY = 63
RTLD_NOW = 2
FORK_ATTEMPTS = 100
FORK_WAIT_S = 0.01


def _function(name: str) -> int | None:
    if _ctypes is None:
        return None
    try:
        itself: Any = None
        return _ctypes.dlsym(_ctypes.dlopen(itself, RTLD_NOW), name)
    except (AttributeError, OSError):
        return None


_PRCTL = _function("prctl")
_CALL: Any = getattr(_ctypes, "call_function", None)
AVAILABLE = bool(_PRCTL and _CALL)


def _bounding_set() -> list[int]:
    """Return the capabilities that this process and its children could still pass on."""
    if not AVAILABLE:
        return []
    return [number for number in range(LAST_CAPABILITY + 1) if _CALL(_PRCTL, (PR_CAPBSET_READ, number, 0, 0, 0)) == 1]


_BOUNDING_SET = _bounding_set()


def fork() -> int:
    """Fork, with some patience while there is no room for another process. Raises OSError."""
    for _ in range(FORK_ATTEMPTS):
        try:
            return os.fork()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                raise
            time.sleep(FORK_WAIT_S)
    return os.fork()


def drop_bounding_set() -> None:
    """Give up every capability for all programs that this process will execute."""
    for capability in _BOUNDING_SET:
        _CALL(_PRCTL, (PR_CAPBSET_DROP, capability, 0, 0, 0))


def own_proc_files() -> None:
    """Own `/proc/self` again. A change of user takes it away, and every process that was executed owns it."""
    if AVAILABLE:
        _CALL(_PRCTL, (PR_SET_DUMPABLE, 1, 0, 0, 0))


def disown_proc_files() -> None:
    """Give up `/proc/self`, so that no process of the same user can read or trace this one."""
    if AVAILABLE:
        _CALL(_PRCTL, (PR_SET_DUMPABLE, 0, 0, 0, 0))


if AVAILABLE:

    class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "P"

    class _Size(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "L"


MADV_POPULATE_WRITE = 23
_MADVISE = _function("madvise")


def populate_arguments(address: int, size: int) -> Any:
    """Return the arguments of `populate` for these pages. They are built once, because `populate` is called for every run."""
    return (_Pointer(address), _Size(size), MADV_POPULATE_WRITE) if AVAILABLE else None


def populate(calls: Iterable[Any]) -> None:
    """Make the kernel map these pages now, for writing. If it cannot (before Linux 5.14), nothing happens."""
    if not (AVAILABLE and _MADVISE):
        return
    for call in calls:
        if _CALL(_MADVISE, call) != 0:
            return


# -- calls with names that must stay out of Python's memory: they go between the kernel and one buffer

BUFFER_BYTES = 1 << 16
"""As long as the longest list of attributes that the kernel returns."""
READ_BYTES = 1 << 12
"""So little of a folder is read at once, because it is read again from its start after each folder in it."""
AT_REMOVEDIR = 0x200
FOLDER_MODE = 0o700
FS_IOC_SETFLAGS = 0x40086602
"""On 64-bit machines. On others the kernel refuses it, and has no such flags for files in memory either."""

_SYSCALL, _UNLINKAT, _OPENAT, _FCHMODAT, _IOCTL, _FLISTXATTR, _FREMOVEXATTR = map(
    _function, ("syscall", "unlinkat", "openat", "fchmodat", "ioctl", "flistxattr", "fremovexattr")
)
_GETDENTS64 = {"x86_64": 217, "aarch64": 61, "riscv64": 61, "ppc64le": 202, "s390x": 220}.get(os.uname().machine)
NAMES_STAY_IN_BUFFER = bool(AVAILABLE and _GETDENTS64 and _SYSCALL and _UNLINKAT and _FLISTXATTR)
"""Whether folders can be emptied by these calls. If not, no run may continue in the process that has emptied them in another way."""

if NAMES_STAY_IN_BUFFER:

    class _Buffer(_ctypes.Array):  # type: ignore[type-arg]
        _type_ = type("_Byte", (_ctypes._SimpleCData,), {"_type_": "B"})
        _length_ = BUFFER_BYTES

    _BUFFER = _Buffer()
    _START = _ctypes.addressof(_BUFFER)
    # Built once, because every run makes these calls.
    _AT_START = _Pointer(_START)
    _READ_FOLDER = _Size(_GETDENTS64)
    _READ_BYTES = _Size(READ_BYTES)
    _LIST_BYTES = _Size(BUFFER_BYTES)
    _NO_FLAGS = _ctypes.byref(_Size(0))
    BYTES = memoryview(_BUFFER).cast("B")
    """What the kernel has written. Numbers may be read from it; names must stay in it."""


MACHINE = os.uname().machine
_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275, "ppc64le": 356, "s390x": 346}.get(MACHINE)
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31, "riscv64": 31, "ppc64le": 274, "s390x": 283}.get(MACHINE)
SCHEDULING_BYTES = 128
KNOWS_SCHEDULING = bool(NAMES_STAY_IN_BUFFER and _SCHED_GETATTR and _IOPRIO_GET)
"""Whether `scheduling` and `io_priority` work."""


def scheduling() -> bytes:
    """Return this process's scheduling attributes (`struct sched_attr`): policy, niceness, priority, time slice and utilization clamps."""
    wipe(SCHEDULING_BYTES)
    call = (_Size(_SCHED_GETATTR), _Size(0), _AT_START, _Size(SCHEDULING_BYTES), _Size(0))
    _checked(_CALL(_SYSCALL, call), "the scheduling attributes could not be read")
    found = bytes(BYTES[:SCHEDULING_BYTES])
    wipe(SCHEDULING_BYTES)
    return found


def io_priority() -> int:
    """Return this process's priority for input and output."""
    return _checked(_CALL(_SYSCALL, (_Size(_IOPRIO_GET), _Size(1), _Size(0))), "the I/O priority could not be read")


_INOTIFY_INIT, _INOTIFY_ADD_WATCH = map(_function, ("inotify_init1", "inotify_add_watch"))
PR_SET_SECCOMP, FILTER_MODE = 22, 2
INSTRUCTIONS_AT = 16
"""Where the filter's instructions are in the buffer, after `struct sock_fprog`."""


def inotify() -> int:
    """Return a descriptor for watches of folders. Raises OSError."""
    if not (NAMES_STAY_IN_BUFFER and _INOTIFY_INIT and _INOTIFY_ADD_WATCH):
        raise OSError("folders cannot be watched")
    return _checked(_CALL(_INOTIFY_INIT, (os.O_NONBLOCK | os.O_CLOEXEC,)), "folders cannot be watched")


def watch(reports: int, folder: str, mask: int) -> int:
    """Watch a folder. Returns the number of the watch; -1 if there can be no more."""
    name = os.fsencode(folder) + b"\0"
    BYTES[: len(name)] = name
    return _CALL(_INOTIFY_ADD_WATCH, (reports, _AT_START, mask))


def install_filter(program: list[tuple[int, int, int, int]]) -> bool:
    """Install a seccomp filter of these instructions. Returns whether that worked."""
    if not NAMES_STAY_IN_BUFFER:
        return False
    at = INSTRUCTIONS_AT
    for operation, if_true, if_false, operand in program:
        BYTES[at : at + 8] = (
            operation.to_bytes(2, sys.byteorder) + bytes((if_true, if_false)) + operand.to_bytes(4, sys.byteorder)
        )
        at += 8
    BYTES[:8] = len(program).to_bytes(2, sys.byteorder) + bytes(6)
    BYTES[8:INSTRUCTIONS_AT] = (_START + INSTRUCTIONS_AT).to_bytes(8, sys.byteorder)
    installed = _CALL(_PRCTL, (PR_SET_SECCOMP, FILTER_MODE, _AT_START, 0, 0)) == 0
    wipe(at)
    return installed


def wipe(size: int) -> None:
    """Overwrite what was read."""
    BYTES[:size] = bytes(size)


def read_folder(file: int) -> int:
    """Read entries of a folder into the buffer. Returns their size in bytes. Raises OSError."""
    return _checked(_CALL(_SYSCALL, (_READ_FOLDER, file, _AT_START, _READ_BYTES)), "a folder could not be read")


def unlink(folder_file: int, name_at: int, *, folder: bool) -> bool:
    """Remove the entry of this name from a folder. Returns whether that worked."""
    return _CALL(_UNLINKAT, (folder_file, _Pointer(_START + name_at), AT_REMOVEDIR if folder else 0)) == 0


def open_folder(folder_file: int, name_at: int, flags: int) -> int:
    """Give a folder's owner all rights to it, whatever its mode, and open it. Returns -1 if that fails."""
    name = _Pointer(_START + name_at)
    _CALL(_FCHMODAT, (folder_file, name, FOLDER_MODE, 0))
    return _CALL(_OPENAT, (folder_file, name, flags))


def list_attributes(file: int) -> int:
    """Read the names of a file's attributes into the buffer. Returns their size in bytes. Raises OSError."""
    return _checked(
        _CALL(_FLISTXATTR, (file, _AT_START, _LIST_BYTES)),
        "the attributes of a folder could not be read",
    )


def remove_attribute(file: int, name_at: int) -> bool:
    """Remove the attribute of this name. Returns whether that worked."""
    return _CALL(_FREMOVEXATTR, (file, _Pointer(_START + name_at))) == 0


def clear_flags(file: int) -> None:
    """Clear a folder's flags (`chattr`). Since Linux 6.1 files in memory have some that their owner may set."""
    _CALL(_IOCTL, (file, FS_IOC_SETFLAGS, _NO_FLAGS))


def text_at(name_at: int) -> str:
    """Return a name for an error message. The container ends with it, so no run can find the name."""
    end = name_at
    while BYTES[end]:
        end += 1
    return repr(bytes(BYTES[name_at:end]))


def _checked(result: int, problem: str) -> int:
    if result < 0:
        raise OSError(problem)
    return result
