"""What another process may do between any two lines, tried one line at a time: no sleeps, no luck.

The rule: `interfere` is called once in each try, before one line of the given modules, and each line gets its own try.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def before_every_line(act: Callable[[], T], interfere: Callable[[], object], *modules: ModuleType) -> Iterator[T]:
    """Repeat `act`, and interfere before its first line in these modules, then before its second, and so on.

    The last repetition ends without interference.
    """
    for line in count():
        tracer = _Tracer(interfere, line, {str(module.__file__) for module in modules})
        yield tracer.run(act)
        if not tracer.interfered:
            assert line > 0, "no line of these modules was run"
            return


class _Tracer:
    """Counts the lines of some files, and interferes before one of them."""

    def __init__(self, interfere: Callable[[], object], line: int, files: set[str]) -> None:
        self._interfere = interfere
        self._lines_left = line
        self._files = files
        self.interfered = False

    def run(self, act: Callable[[], T]) -> T:
        """Run `act` with this tracer."""
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            return act()
        finally:
            sys.settrace(before)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._on_line if frame.f_code.co_filename in self._files else None

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and not self.interfered:
            if self._lines_left == 0:
                self.interfered = True
                self._interfere()  # the interpreter traces nothing while a tracer runs
            self._lines_left -= 1
        return self._on_line
