"""The template: a process that has imported the function's packages, as the function's user, and is forked for each spare.

The rule: it runs code of the function only while it imports, before any run that it is forked for, and then only the loop below. It has the
user of the runs, so the kernel lets a run send it signals and change its limits and its scheduling. A run can neither read nor trace it, because it
is not dumpable. It blocks signals, and before each fork it compares everything else with what it was: if anything has changed, it ends, and the
first process, which nobody can touch, starts another one. The first process does the same if it was stopped or has ended.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH123, PTH208
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _signal
import gc
import os

from nanogrid_warm import channel, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    import _socket
    from typing import Any

UNFIT = 76
"""The exit code of a template that has imported the packages and may not be forked."""
CHANGED = 77
"""The exit code of a template that a run has changed."""
FORK = b"fork"
WORD_BYTES = 64
CORE_DUMPED = 0x80
TASKS = "/proc/self/task"
PENDING = (b"SigPnd:", b"ShdPnd:")
OOM_SCORE = b"900"
"""When memory runs out, runs are killed first (1000), then the template, then the first process."""
IGNORED = ("SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGPIPE", "SIGXFSZ")
"""Signals that do nothing if they are not blocked. Blocked ones would be kept, and each one counts against the user's limit."""


class Template:
    """The template as the first process sees it."""

    def __init__(self, pid: int, pidfd: int, control: _socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.control = control

    def fork(self, connections: channel.SpareConnections) -> int:
        """Have it forked. Returns the spare's pid; 0 if the template has ended or cannot fork."""
        ends = [connections.spare_end.fileno(), connections.request_end.fileno()]
        if not channel.send(self.control, FORK, ends):
            return 0
        word = channel.receive_bytes(self.control, WORD_BYTES)
        number = word[len(b"forked ") :] if word.startswith(b"forked ") else b""
        return int(number) if number.isdigit() and int(number) not in (1, self.pid) else 0

    def end_status(self) -> int:
        """Return the wait status of its last fork; -1 if it does not send one."""
        word = channel.receive_bytes(self.control, WORD_BYTES)
        number = word[len(b"ended ") :] if word.startswith(b"ended ") else b""
        return int(number) if number.isdigit() else -1

    def is_untouched(self) -> bool:
        """Return whether it was neither stopped nor continued, and has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WCONTINUED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def close(self) -> None:
        """Forget it."""
        os.close(self.pidfd)
        self.control.close()


# -- in the template


def may_be_forked() -> bool:
    """Return whether this process, which has imported the packages, can be the template: it has no timer, and no thread that a fork would lose.

    Threads of a library that ends them before a fork, and starts them again on both sides or when they are needed (as OpenBLAS does), are not lost.
    """
    if not kernel.KNOWS_SCHEDULING or _has_timers():
        return False
    if len(os.listdir(TASKS)) == 1:
        return True
    child = os.fork()
    if child == 0:
        os._exit(len(os.listdir(TASKS)) & 0x7F)
    _, status = os.waitpid(child, 0)
    return status == (len(os.listdir(TASKS)) & 0x7F) << 8


def _has_timers() -> bool:
    """Return whether this process has created POSIX timers, as far as the kernel shows it."""
    try:
        with open("/proc/self/timers", "rb") as timers:
            return bool(timers.read(1))
    except OSError:
        return False


def hold(control: _socket.socket) -> channel.ReceivedConnections:
    """Wait for orders to fork. Returns only in a fork, with the connections of that spare."""
    collects = gc.isenabled()
    gc.disable()
    ignored = {getattr(_signal, name) for name in IGNORED}
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals() - ignored)
    kernel.disown_proc_files()
    state = _state()
    while True:
        word, descriptors = channel.receive(control)
        if word != FORK:
            os._exit(0)
        if _state() != state:
            os._exit(CHANGED)
        try:
            child = kernel.fork()
        except OSError:
            os._exit(CHANGED)
        if child == 0:
            control.close()
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
            if collects:
                gc.enable()
            return channel.ReceivedConnections(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(control, b"forked %d" % child)
        # Reaped only after the report: if this process is killed in between, the first process finds the status itself.
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        channel.send(control, b"ended %d" % _wait_status(ended))
        os.waitpid(child, 0)


def _wait_status(ended: Any) -> int:
    """Return the wait status of a process from what `waitid` returns."""
    if ended.si_code == os.CLD_EXITED:
        return int(ended.si_status) << 8
    return int(ended.si_status) | (CORE_DUMPED if ended.si_code == os.CLD_DUMPED else 0)


def _state() -> list[object]:
    """Return what a process of the same user can change in this one, and what its forks would inherit."""
    with open("/proc/self/status", "rb") as status, open("/proc/self/limits", "rb") as limits:
        pending = [line for line in status if line.startswith(PENDING)]
        return [pending, limits.read(), os.sched_getaffinity(0), kernel.scheduling(), kernel.io_priority()]
