"""Simulates what another process does between any two lines, one line at a time: without sleeps and without chance.

The rule: each try calls `look` once, before one line of the given modules, and every such line gets a try.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def before_every_line(act: Callable[[], T], look: Callable[[], object], *modules: ModuleType) -> Iterator[T]:
    """Call `act` repeatedly, and call `look` before its first line in these modules, then before its second, and so on.

    The last one ends before anybody looks.
    """
    for line in count():
        tracer = _Tracer(look, line, {str(module.__file__) for module in modules})
        yield tracer.run(act)
        if not tracer.looked:
            assert line > 0, "not a line of these modules was run"
            return


class _Tracer:
    """Counts the lines of some files, and calls `look` before one of them."""

    def __init__(self, look: Callable[[], object], line: int, files: set[str]) -> None:
        self._look = look
        self._lines_left = line
        self._files = files
        self.looked = False

    def run(self, act: Callable[[], T]) -> T:
        """Call it under this tracer."""
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            return act()
        finally:
            sys.settrace(before)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._on_line if frame.f_code.co_filename in self._files else None

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and not self.looked:
            if self._lines_left == 0:
                self.looked = True
                self._look()  # the interpreter traces nothing while a tracer runs
            self._lines_left -= 1
        return self._on_line
