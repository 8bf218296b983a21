"""What Python has no function for: capabilities, the right to look into one's own /proc, pages, a folder's flags.

The rule: needs no more than `_ctypes`, without the package around it; where that is missing, says so and does nothing.
"""

# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
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
    """The capabilities that this process, and what it forks, could still pass on."""
    if not AVAILABLE:
        return []
    return [number for number in range(LAST_CAPABILITY + 1) if _CALL(_PRCTL, (PR_CAPBSET_READ, number, 0, 0, 0)) == 1]


_BOUNDING_SET = _bounding_set()


def drop_bounding_set() -> None:
    """Give up every capability for whatever this process will execute."""
    for capability in _BOUNDING_SET:
        _CALL(_PRCTL, (PR_CAPBSET_DROP, capability, 0, 0, 0))


def own_proc_files() -> None:
    """Own `/proc/self` again, which a change of user takes away, as every process that was executed does."""
    if AVAILABLE:
        _CALL(_PRCTL, (PR_SET_DUMPABLE, 1, 0, 0, 0))


if AVAILABLE:

    class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "P"

    class _Size(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "L"


MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
_MADVISE = _function("madvise")


def populating(address: int, size: int, advice: int = MADV_POPULATE_WRITE) -> Any:
    """What `populate` wants for these pages: made once, where it is done for every run."""
    return (_Pointer(address), _Size(size), advice) if AVAILABLE else None


def populate(calls: Iterable[Any]) -> None:
    """Let the kernel map these pages now, for writing. What it cannot (before Linux 5.14) is left out."""
    if not (AVAILABLE and _MADVISE):
        return
    for call in calls:
        if _CALL(_MADVISE, call) != 0:
            return


FS_IOC_SETFLAGS = 0x40086602
"""On 64-bit machines. On others the kernel refuses it, and has no such flags in memory either."""
_IOCTL = _function("ioctl")


def clear_flags(folder: bytes) -> None:
    """Take a folder's flags away (`chattr`): since Linux 6.1 files in memory have some that their owner may set."""
    if not (AVAILABLE and _IOCTL):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _CALL(_IOCTL, (descriptor, FS_IOC_SETFLAGS, _ctypes.byref(_Size(0))))
    finally:
        os.close(descriptor)
