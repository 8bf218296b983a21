"""A quick end for programs of which nobody could tell that their interpreter was not taken apart piece by piece.

The rule: where a program has left anything that Python's own end would run, write or complain about, Python's own end it is.
Taking an interpreter apart costs a few milliseconds, nearly always for nothing: the kernel frees memory better. `leave` is
the first exit callback of all, so it comes after the function's own; threads have been waited for by then.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH120, SIM105
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _io
import _thread
import atexit
import gc
import os
import sys

from nanogrid_warm import exit_code

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import AsyncIterator, Callable, Collection
    from typing import Any

CALM_EXTENSIONS = ("numpy", "pandas", "markupsafe", "yaml", "orjson", "msgpack", "pydantic_core", "regex")
"""Packages of which the compiled parts hold nothing that is written when they go."""

STANDARD = os.path.dirname(os.__file__) + os.sep
LOUD_MODULES = (
    "_dbm",
    "_gdbm",
    "_sqlite3",
    "_tkinter",
    "readline",
    "_curses",
    "_lsprof",
    "faulthandler",
    "tracemalloc",
)
THINGS_LIMIT = 300_000
"""With more than this, looking at each takes as long as what it is to save."""

PAUSED = (type(nothing for nothing in ""), type((lambda: (yield))()))


def _coroutine_types() -> tuple[type, type]:
    async def coroutine() -> None:
        pass

    async def generator() -> AsyncIterator[None]:
        yield

    made = coroutine()
    made.close()
    return type(made), type(generator())


class Leave:
    """The exit callback, and what it remembers from before the function's code ran."""

    def __init__(self) -> None:
        self.process = 0
        self.streams: tuple[Any, ...] = ()
        self.known: Collection[str] = ()
        self.before: Callable[[], None] | None = None
        self.after: Callable[[], None] | None = None
        self.loader: object = None
        self.uses_ctypes = False
        self.exit_code = exit_code.ExitCode()
        self.paused = (*PAUSED, *_coroutine_types())

    def install(self) -> None:
        """Done once in the first process, before anybody else could register an exit callback."""
        self.exit_code.install()
        atexit.register(self)

    def arm(self, uses_ctypes: bool, before: Callable[[], None] | None) -> None:
        """Done in the child, last thing before the function's code. `before` is run at the end, whatever end it is."""
        self.process = os.getpid()
        self.streams = (sys.stdin, sys.stdout, sys.stderr)
        self.known = frozenset(sys.modules)
        self.loader = vars(sys.modules["__main__"]).get("__loader__")
        self.uses_ctypes = uses_ctypes
        self.before = before

    def __call__(self) -> None:
        """Leave the process, or return and let Python do what it does."""
        if os.getpid() == self.process:
            collects = gc.isenabled()
            gc.disable()
            try:
                self._leave_quickly()
            except Exception:  # noqa: BLE001, S110  # streams that raise when they are looked at: Python will say what it has to
                pass
            if collects:
                gc.enable()
        self._let_go()

    def _leave_quickly(self) -> None:
        if self.before is not None:
            self.before()
        code = self._code()
        if code is None or not self._has_own_streams() or not self._is_calm():
            return
        sys.stdout.flush()
        sys.stderr.flush()
        if self.after is not None:
            self.after()
        os._exit(code)

    def _let_go(self) -> None:
        """Hold on to nothing, so that Python's own end finds everything as it would be without us."""
        self.streams, self.known, self.before, self.after = (), (), None, None
        gc.unfreeze()

    def _code(self) -> int | None:
        """The exit code; None where it is not known.

        A script that is run gets a loader of its own. At its end Python takes two of its names away, but not when it ends by
        SystemExit.
        """
        names = vars(sys.modules["__main__"])
        if hasattr(sys, "last_type") or "__name__" not in names or names.get("__loader__") is self.loader:
            return None
        if "__file__" in names:
            return self.exit_code.value if "__cached__" in names else None
        return None if "__cached__" in names else 0

    def _has_own_streams(self) -> bool:
        return (
            _thread._count() == 0
            and (sys.stdin, sys.stdout, sys.stderr) == self.streams
            and (sys.__stdin__, sys.__stdout__, sys.__stderr__) == self.streams
            and not sys.stdout.closed
            and not sys.stderr.closed
        )

    def _is_calm(self) -> bool:
        """Whether nothing that the program has made does anything when it goes."""
        modules = sys.modules
        if self.uses_ctypes or any(name in modules for name in LOUD_MODULES) or self._has_extensions():
            return False
        mine = {id(stream) for stream in self.streams}
        mine.update([id(stream.buffer) for stream in self.streams])
        paused = self.paused
        quiet: dict[type, bool] = {}
        things = gc.get_objects()
        if len(things) > THINGS_LIMIT:
            return False
        for thing in things:
            kind = type(thing)
            known = quiet.get(kind)
            if known is None:
                known = quiet[kind] = not (hasattr(kind, "__del__") or issubclass(kind, (type, *paused)))
            if known or id(thing) in mine:
                continue
            if isinstance(thing, type):
                if "__del__" in thing.__dict__:
                    return False
            elif isinstance(thing, paused) or not (isinstance(thing, _io._IOBase) and thing.closed):
                return False
        return True

    def _has_extensions(self) -> bool:
        """Whether the function has loaded compiled code of which nothing is known."""
        for name, module in list(sys.modules.items()):
            if name in self.known or name.partition(".")[0] in CALM_EXTENSIONS:
                continue
            origin = getattr(getattr(module, "__spec__", None), "origin", None)
            if isinstance(origin, str) and origin.endswith(".so") and not origin.startswith(STANDARD):
                return True
        return False
