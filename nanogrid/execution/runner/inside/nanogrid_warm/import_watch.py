"""What packages do while they are imported that a fork of the importing process would repeat.

The rule: the template imports packages once and is forked for each run, so what they drew, asked or registered then would be the same in all runs.
If one has drawn random bytes, asked for its process id, or registered code for forks, every spare imports the packages itself, as before. What the
standard library does when it is imported itself is known, and renewed in each run where that matters.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH120
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Callable, Iterable
    from typing import Any

NAMES = ("getpid", "getppid", "getrandom", "register_at_fork", "urandom")
STANDARD = os.path.dirname(os.__file__) + os.sep
SITE = "-packages" + os.sep
GENERATORS = (
    ("random", "Random"),
    ("numpy.random.mtrand", "RandomState"),
    ("numpy.random._generator", "Generator"),
    ("numpy.random.bit_generator", "BitGenerator"),
)
"""Types whose objects draw random numbers, by the module that has them."""
UNSHARED = 2
"""The reference count of an object that only one variable refers to, as `sys.getrefcount` returns it."""


class ImportWatch:
    """Watches calls of a few functions of `os` from packages, until `stop`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """The watched functions that a package has called."""
        self._own: dict[str, Any] = {}
        self._watching: dict[str, Any] = {}
        self._module = sys.modules[os.name]

    def start(self) -> None:
        """Put watching functions in place of the watched ones."""
        for name in NAMES:
            own = getattr(os, name, None)
            if own is not None:
                self._own[name] = own
                self._watching[name] = self._watched(name, own)
                self._replace(name, self._watching[name])

    def stop(self, namespaces: Iterable[dict[str, Any]]) -> None:
        """Put the functions back, also in these namespaces, whose modules have imported them by name. `is_unseen` then tells the rest."""
        for name, own in self._own.items():
            self._replace(name, own)
        own_by_id = {id(watching): self._own[name] for name, watching in self._watching.items()}
        for names in namespaces:
            for name, value in list(names.items()):
                if id(value) in own_by_id:
                    names[name] = own_by_id[id(value)]

    def is_unseen(self) -> bool:
        """Return whether nothing but this object refers to a watching function any more."""
        unseen = True
        while self._watching:
            _, watching = self._watching.popitem()
            unseen = unseen and sys.getrefcount(watching) <= UNSHARED
        return unseen

    def _replace(self, name: str, function: Any) -> None:
        for module in (os, self._module):
            setattr(module, name, function)

    def _watched(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*arguments: Any, **named: Any) -> Any:
            if _is_called_by_package(sys._getframe(1)):
                self.calls.append(name)
            return own(*arguments, **named)

        return watching


def _is_called_by_package(frame: Any) -> bool:
    """Return whether a call comes from a package, directly or through the standard library; not from an import of the standard library."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return False
        if not file.startswith(STANDARD) or SITE in file:
            return True
        frame = frame.f_back
    return False


def unknown_generators(hidden: dict[str, Any]) -> list[str]:
    """Return the types of random generators that packages have made, besides the two global ones, which each run seeds anew."""
    modules = {**sys.modules, **hidden}
    types = tuple(getattr(modules[module], name) for module, name in GENERATORS if hasattr(modules.get(module), name))
    if not types:
        return []
    global_one = getattr(modules.get("numpy.random.mtrand"), "_rand", None)
    known = (getattr(modules.get("random"), "_inst", None), global_one, getattr(global_one, "_bit_generator", None))
    harmless = getattr(modules.get("random"), "SystemRandom", ())
    return [
        type(each).__name__
        for each in gc.get_objects()
        if isinstance(each, types) and not isinstance(each, harmless) and not any(each is one for one in known)
    ]


def state_of_random(hidden: dict[str, Any]) -> object:
    """Return the state of `random`'s global generator; None if the module is not loaded. It changes when a package draws from it."""
    generator = getattr(hidden.get("random") or sys.modules.get("random"), "_inst", None)
    return generator and generator.getstate()


def seed(find: Callable[[str], Any]) -> None:
    """Seed anew what packages have seeded when they were imported, in a fork. `find` returns a loaded module by its name, hidden or not."""
    module = find("numpy.random.mtrand")
    if module is not None:
        module._rand.__init__()
