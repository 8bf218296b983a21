"""Runs the real compiler once for the compiler cache: its output, its list of headers, its end.

The rule: the caller sees the compile as if there were no cache: its output as it comes, its signals, its end.
Only misses come here. Python >= 3.9.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes longer to import
import os

from .compiler_command import Command
from .compiler_inputs import Fact, Root
from .compiler_record import facts, headers

_WARNINGS_LIMIT_BYTES = 1 << 20
_FORWARDED = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
_RESTORED = (_signal.SIGPIPE, _signal.SIGXFSZ)  # the interpreter ignores these


class Lists:
    """The file in which the compiler lists the headers that it has read. It is in memory, so that no full file system fails a compile."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("headers")
        self._path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        # A file that the compiler cannot open would fail the compile.
        os.close(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def environment(self, base: dict[str, str]) -> dict[str, str]:
        """Return the environment that makes the compiler list all headers, without a change to its arguments."""
        return {**base, "SUNPRO_DEPENDENCIES": self._path}

    def facts(self, command: Command, root: Root, environment: dict[str, str]) -> tuple[Fact, ...]:
        """Return what the compile depended on. Raises `UnclearError` if that is in doubt."""
        size = os.fstat(self._descriptor).st_size
        listed = headers(os.fsdecode(os.pread(self._descriptor, size, 0)), len(command.sources))
        return facts(command, root, listed, environment)


def compile_once(real: str, argv: list[str], environment: dict[str, str]) -> tuple[int, bytes | None]:
    """Run the compiler with the caller's stdout and stderr. Returns the wait status and what it wrote to stderr.

    None in place of stderr: there was output that cannot be repeated. Raises OSError if nothing was started.
    """
    out = os.memfd_create("stdout")
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
    pid = os.posix_spawn(real, argv, environment, file_actions=actions, setsigdef=_RESTORED)
    os.close(writer)
    _forward_signals(pid)
    warnings = _pass_on(reader)
    status = os.waitpid(pid, 0)[1]
    printed = os.pread(out, os.fstat(out).st_size, 0)
    if printed:
        _write_all(1, printed)
        return status, None
    return status, warnings


def list_only(real: str, argv: list[str], environment: dict[str, str]) -> None:
    """Run only the preprocessor, for its list of headers."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, number) for number in range(3)]
    pid = os.posix_spawn(real, argv, environment, file_actions=actions, setsigdef=_RESTORED)
    _forward_signals(pid)
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("the preprocessor alone failed")


def end_as(status: int) -> None:
    """End as the compiler ended, by its signal or with its exit code."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != _signal.SIGKILL:
            _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


def _forward_signals(pid: int) -> None:
    def forward(number: int, _frame: object) -> None:
        try:
            os.kill(pid, number)
            status = os.waitpid(pid, 0)[1]
        except (ProcessLookupError, ChildProcessError):
            return  # it has already ended, and the caller will get its end
        # Immediately: the compiler's own children, which hold the pipe, may still run.
        end_as(status)

    for number in _FORWARDED:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, forward)


def _pass_on(reader: int) -> bytes | None:
    """Copy everything to stderr as it comes, until no process holds the pipe. Returns it; None if it cannot be repeated."""
    kept: bytes | None = b""
    while block := os.read(reader, 65_536):
        if not _write_all(2, block) or (kept is not None and len(kept) > _WARNINGS_LIMIT_BYTES):
            kept = None
        if kept is not None:
            kept += block
    return kept


def _write_all(descriptor: int, content: bytes) -> bool:
    """Write everything. Returns False if nobody reads it any more."""
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        return False
    return True
