"""A fast end for programs that leave nothing to do for the interpreter's own end.

The rule: if a program has left anything that Python's own end would run, write or report, Python's own end runs. Finalizing an
interpreter takes a few milliseconds, nearly always for nothing: the kernel frees memory faster. `FastExit` is registered as the first
exit callback, so it runs after the function's own callbacks, and after Python has waited for the threads.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH120, SIM105
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
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
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import AsyncIterator, Callable, Collection
    from typing import Any

KNOWN_EXTENSIONS = ("numpy", "pandas", "markupsafe", "yaml", "orjson", "msgpack", "pydantic_core", "regex")
"""Packages whose compiled parts write nothing when they are freed."""

STANDARD = os.path.dirname(os.__file__) + os.sep
MODULES_WITH_CLEANUP = (
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
OBJECTS_LIMIT = 300_000
"""With more objects than this, checking them takes as long as the fast end saves."""

SUSPENDABLE_TYPES = (type(nothing for nothing in ""), type((lambda: (yield))()))


def _coroutine_types() -> tuple[type, type]:
    async def coroutine() -> None:
        pass

    async def generator() -> AsyncIterator[None]:
        yield

    made = coroutine()
    made.close()
    return type(made), type(generator())


class FastExit:
    """The exit callback, and what it remembers from before the function's code ran."""

    def __init__(self) -> None:
        self.process = 0
        self.streams: tuple[Any, ...] = ()
        self.known_modules: Collection[str] = ()
        self.before: Callable[[], None] | None = None
        self.after: Callable[[], None] | None = None
        self.loader: object = None
        self.uses_ctypes = False
        self.exit_code = exit_code.ExitCode()
        self.suspendable = (*SUSPENDABLE_TYPES, *_coroutine_types())

    def install(self) -> None:
        """Register the callback, once in the first process, before any other exit callback."""
        self.exit_code.install()
        atexit.register(self)

    def activate(self, uses_ctypes: bool, before: Callable[[], None] | None) -> None:
        """Remember the state before the function's code, as the last step in the child. `before` is called at the end of the program."""
        self.process = os.getpid()
        self.streams = (sys.stdin, sys.stdout, sys.stderr)
        self.known_modules = frozenset(sys.modules)
        self.loader = vars(sys.modules["__main__"]).get("__loader__")
        self.uses_ctypes = uses_ctypes
        self.before = before

    def __call__(self) -> None:
        """Exit the process, or return and let Python end it."""
        if os.getpid() == self.process:
            collects = gc.isenabled()
            gc.disable()
            try:
                self._exit_fast()
            except Exception:  # noqa: BLE001, S110  # the function's streams can raise anything; Python's own end reports it
                pass
            if collects:
                gc.enable()
        self._release()

    def _exit_fast(self) -> None:
        if self.before is not None:
            self.before()
        code = self._exit_code()
        if code is None or not self._has_original_streams() or not self._needs_no_cleanup():
            return
        sys.stdout.flush()
        sys.stderr.flush()
        if self.after is not None:
            self.after()
        os._exit(code)

    def _release(self) -> None:
        """Release everything, so that Python's own end finds the program as it would be without us."""
        self.streams, self.known_modules, self.before, self.after = (), (), None, None
        gc.unfreeze()

    def _exit_code(self) -> int | None:
        """Return the exit code; None if it is unknown.

        A script that was run has a `__loader__` of its own. At its end Python removes `__file__` and `__cached__` from its names, but
        not if it ends by SystemExit.
        """
        names = vars(sys.modules["__main__"])
        if hasattr(sys, "last_type") or "__name__" not in names or names.get("__loader__") is self.loader:
            return None
        if "__file__" in names:
            return self.exit_code.value if "__cached__" in names else None
        return None if "__cached__" in names else 0

    def _has_original_streams(self) -> bool:
        return (
            _thread._count() == 0
            and (sys.stdin, sys.stdout, sys.stderr) == self.streams
            and (sys.__stdin__, sys.__stdout__, sys.__stderr__) == self.streams
            and not sys.stdout.closed
            and not sys.stderr.closed
        )

    def _needs_no_cleanup(self) -> bool:
        """Return whether no object of the program does anything when it is freed."""
        modules = sys.modules
        if self.uses_ctypes or any(name in modules for name in MODULES_WITH_CLEANUP) or self._has_unknown_extensions():
            return False
        own_streams = {id(stream) for stream in self.streams}
        own_streams.update([id(stream.buffer) for stream in self.streams])
        suspendable = self.suspendable
        harmless: dict[type, bool] = {}
        objects = gc.get_objects()
        if len(objects) > OBJECTS_LIMIT:
            return False
        for each in objects:
            type_ = type(each)
            ok = harmless.get(type_)
            if ok is None:
                ok = harmless[type_] = not (hasattr(type_, "__del__") or issubclass(type_, (type, *suspendable)))
            if ok or id(each) in own_streams:
                continue
            if isinstance(each, type):
                if "__del__" in each.__dict__:
                    return False
            elif isinstance(each, suspendable) or not (isinstance(each, _io._IOBase) and each.closed):
                return False
        return True

    def _has_unknown_extensions(self) -> bool:
        """Return whether the function has loaded compiled code that is not known."""
        for name, module in list(sys.modules.items()):
            if name in self.known_modules or name.partition(".")[0] in KNOWN_EXTENSIONS:
                continue
            origin = getattr(getattr(module, "__spec__", None), "origin", None)
            if isinstance(origin, str) and origin.endswith(".so") and not origin.startswith(STANDARD):
                return True
        return False
