"""A seccomp filter for everything in the container: it refuses what would let a run change a file unseen, or keep one open after its end.

The rule: it adds to the engine's own filter and allows nothing that this one refuses. Refused are io_uring, which newer engines refuse too (the kernel closes its
files some time after the process has ended), and the flags of files (`chattr`), which no watch reports.
"""

# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import errno
import os

from nanogrid_warm import kernel

IO_URING_SETUP, FILE_SETATTR = 425, 469
"""The same numbers on all machines."""
SET_FLAGS = (0x40086602, 0x40046602, 0x401C5820)
"""FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR."""
IOCTL: dict[str, dict[int, tuple[int, ...]]] = {
    "x86_64": {0xC000003E: (16, 0x40000000 + 16, 0x40000000 + 514), 0x40000003: (54,)},
    "aarch64": {0xC00000B7: (29,), 0x40000028: (54,)},
}
"""By machine, and by the architecture that a system call is made for: the numbers of `ioctl`."""
X32 = 0x40000000

LOAD, EQUAL, ANSWER = 0x20, 0x15, 0x06
AT_NUMBER, AT_ARCHITECTURE, AT_SECOND_ARGUMENT = 0, 4, 24
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def refuse() -> bool:
    """Install the filter in this process and all its later children. Returns whether that worked."""
    architectures = IOCTL.get(os.uname().machine)
    return architectures is not None and kernel.install_filter(_program(architectures))


def _program(architectures: dict[int, tuple[int, ...]]) -> list[tuple[int, int, int, int]]:
    """Return the filter's instructions: operation, jump if true, jump if false, operand."""
    program = [(LOAD, 0, 0, AT_NUMBER)]
    for number in (IO_URING_SETUP, IO_URING_SETUP + X32):
        program += [(EQUAL, 0, 1, number), (ANSWER, 0, 0, REFUSE | errno.EPERM)]
    for number in (FILE_SETATTR, FILE_SETATTR + X32):
        program += [(EQUAL, 0, 1, number), (ANSWER, 0, 0, REFUSE | errno.ENOSYS)]
    program.append((LOAD, 0, 0, AT_ARCHITECTURE))
    for architecture, numbers in architectures.items():
        check = [(LOAD, 0, 0, AT_NUMBER)]
        tail = [(ANSWER, 0, 0, ALLOW), (LOAD, 0, 0, AT_SECOND_ARGUMENT)]
        for command in SET_FLAGS:
            tail += [(EQUAL, 0, 1, command), (ANSWER, 0, 0, REFUSE | errno.ENOTTY)]
        tail.append((ANSWER, 0, 0, ALLOW))
        check += [(EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
        block = [*check, *tail]
        program += [(EQUAL, 0, len(block), architecture), *block]
    program.append((ANSWER, 0, 0, ALLOW))
    return program
