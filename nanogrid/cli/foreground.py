"""`nanogrid up` without --detach: shows the logs of all parts, and stops the stack on Ctrl-C.

The rule: the parts are detached processes, as with --detach. If this command is killed, the stack keeps running, and
`nanogrid down` stops it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.text import Text

from nanogrid.cli import console
from nanogrid.local.folder import StackState
from nanogrid.local.stack import LocalStack, PortChoice

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

_POLL_S = 0.1
_COLOURS = {"sqs": "blue", "redis": "magenta", "flower": "cyan", "worker": "green"}


class LogTail:
    """New whole lines of one log file. Opens the file once it exists, and again after it was moved aside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def lines(self) -> list[str]:
        """Lines that were completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._position:
                self._position, self._rest = 0, b""
            file.seek(self._position)
            data = file.read()
            self._position = file.tell()
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in whole]


def follow(stack: LocalStack, choice: PortChoice, print_places: Callable[[LocalStack, StackState], None]) -> int:
    """Start the stack and show its logs until Ctrl-C (or SIGTERM, SIGHUP), then stop it. Return the exit code."""
    tails = {part: LogTail(stack.folder.log_path(part)) for part in _COLOURS}
    out = console.stdout()
    with _signals_as_interrupt():
        try:
            state = stack.up(choice)
            print_places(stack, state)
            out.print("Press Ctrl-C to stop it.\n")
            _show_until_gone(stack, state, tails, out)
        except KeyboardInterrupt:
            console.note("stopping the stack; press Ctrl-C again to stop without waiting for running functions")
            _end(stack)
    return 0


def _show_until_gone(stack: LocalStack, state: StackState, tails: dict[str, LogTail], out: Console) -> None:
    """Show logs. Returns once another command has stopped the stack."""
    reported: set[int] = set()
    while stack.folder.read() is not None:
        for part, tail in tails.items():
            for line in tail.lines():
                out.print(Text(f"{part:<7}│ ", style=_COLOURS[part]).append(line, style="default"))
        state = stack.folder.read() or state
        for part, record in state.processes.items():
            if not record.is_alive and record.pid not in reported and stack.folder.read() is not None:
                reported.add(record.pid)
                console.complain(f"{part} (process {record.pid}) ended; start it again with: nanogrid up --detach")
        time.sleep(_POLL_S)
    console.note("another command stopped the stack")


def _end(stack: LocalStack) -> None:
    try:
        stack.down()
    except KeyboardInterrupt:
        stack.down(warm_shutdown_s=0)


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP (the terminal was closed) stop the stack as Ctrl-C does."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
