"""Modules that were imported before the function asks for them, hidden until it does.

The rule: what a program can see is what it would see without us. A hidden module is not in `sys.modules` and no attribute of
its package; an import statement brings it out together with all that importing it would have brought, in the same order. And
where anything has changed by which the import could have found another module, all that is hidden is forgotten.

Python asks `_frozen_importlib._find_spec` for every module that is not there yet. We answer with the hidden module's own
spec, whose loader for this once brings the module out instead of making it.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH116, PTH208
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import atexit
import builtins
import os
import sys

from nanogrid_warm.places import WORKSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Callable, Collection, Iterable, Sequence
    from types import FrameType
    from typing import Any

FROZEN = "<frozen importlib._bootstrap>"
FINDING, LOADING = "_find_and_load_unlocked", "_load_unlocked"
CACHE = "__pycache__"


class Imports:
    """What is hidden, in which groups, and the log of the modules that a run has imported by itself."""

    def __init__(self) -> None:
        self.bootstrap = sys.modules["_frozen_importlib"]
        self.own = self.bootstrap._find_and_load
        self.find = self.bootstrap._find_spec
        self.kept: dict[str, Any] = {"atexit": atexit} if sys.version_info < (3, 10) else {}
        """Modules of which there must be no second one. Before 3.10 a second `atexit` forgets the first one's callbacks."""
        self.hidden: dict[str, Any] = {}
        self.bound: dict[str, Any] = {}
        self.groups: dict[str, list[str]] = {}
        self.roots: list[str] = []
        self.log: list[tuple[int, str, bool]] | None = None
        self.path: list[str] = []
        self.finders: tuple[object, ...] = ()
        self.import_: object = None
        self.names: frozenset[str] = frozenset()
        self.changed_ns = 0

    # -- before the function's code runs

    def hide(self, known: Collection[str], roots: Sequence[str] = ()) -> None:
        """Hide every module that is not in `known`; `roots` are the imports that brought them, in their order."""
        for name in [name for name in sys.modules if name not in known]:
            self.hidden[name] = sys.modules.pop(name)
        for name, module in self.hidden.items():
            package, _, leaf = name.rpartition(".")
            parent = self.hidden.get(package) or sys.modules.get(package)
            if package and vars(parent).get(leaf) is module:
                delattr(parent, leaf)
                self.bound[name] = parent
        self.roots = [*self.roots, *roots]

    def show_all(self) -> None:
        """Bring everything out again."""
        for name in list(self.hidden):
            self._show(name)

    def load(self, name: str) -> None:
        """Import a module now, and remember what that brought. Raises what the import raises."""
        self.bootstrap._find_and_load = self._recorded
        try:
            __import__(name)
        finally:
            self.bootstrap._find_and_load = self.own

    def _recorded(self, name: str, import_: Callable[..., Any]) -> Any:
        before = set(sys.modules)
        if name in self.kept:
            module = sys.modules[name] = self.kept[name]
        else:
            module = self.own(name, import_)
        self.groups[name] = [name for name in sys.modules if name not in before]
        return module

    def shadowed(self, names: Iterable[str]) -> bool:
        """Whether files or folders of these names would be found in place of a hidden module."""
        tops = {name.partition(".")[0] for name in self.hidden}
        return any(name.partition(".")[0] in tops for name in names)

    def forget(self) -> None:
        """Let nothing be hidden: the next import is Python's own."""
        self.hidden, self.groups = {}, {}

    def arm(self, *, learn: bool) -> None:
        """Answer imports from now on, in the child that is going to run the function."""
        self.log = [] if learn else None
        if not (learn or self.hidden or self.kept):
            return
        self.path = [WORKSPACE, *sys.path]
        self.finders = (*sys.meta_path, *sys.path_hooks)
        self.import_ = builtins.__import__
        self.names = self._names()
        if self.shadowed(self.names):
            self.forget()
        self.bootstrap._find_spec = _answering(self)

    # -- while it runs

    def answer(self, name: str) -> Any:
        """The spec that brings out the hidden module of this name; None where Python has to look for it."""
        module = self.hidden.get(name) or self.kept.get(name)
        spec: Any = getattr(module, "__spec__", None)
        if getattr(spec, "name", None) != name or (name not in self.groups and name not in self.kept):
            return None
        if not self._is_as_before():
            self.forget()
            return None
        spec.loader = Revealing(self, name, module, spec.loader)
        return spec

    def reveal(self, name: str) -> None:
        """Bring out what importing this module would have brought; of what comes before it in the learned order, all."""
        for position, root in enumerate(self.roots, 1):
            if name in self.groups.get(root, ()):
                for earlier in self.roots[:position]:
                    for member in self.groups.get(earlier, ()):
                        self._show(member)
                del self.roots[:position]
                break
        for member in self.groups.get(name, ()):
            self._show(member)

    def _show(self, name: str) -> None:
        module = self.hidden.pop(name, None)
        if module is None or name in sys.modules:
            return
        sys.modules[name] = module
        parent = self.bound.pop(name, None)
        if parent is not None:
            setattr(parent, name.rpartition(".")[2], module)

    def _is_as_before(self) -> bool:
        """Whether Python would still find the same modules where they were found beforehand."""
        if (
            sys.path[: len(self.path)] != self.path
            or (*sys.meta_path, *sys.path_hooks) != self.finders
            or builtins.__import__ is not self.import_
        ):
            return False
        return os.stat(WORKSPACE).st_mtime_ns == self.changed_ns or self._names() == self.names

    def _names(self) -> frozenset[str]:
        """The names in the workspace that an import could find, and when they last changed."""
        self.changed_ns = os.stat(WORKSPACE).st_mtime_ns
        return frozenset(name for name in os.listdir(WORKSPACE) if name != CACHE)


class Revealing:
    """Stands in for the loader of a hidden module while that is brought out."""

    def __init__(self, imports: Imports, name: str, module: Any, own: Any) -> None:
        self.imports = imports
        self.name = name
        self.module = module
        self.own = own

    def create_module(self, _spec: object) -> Any:
        return self.module

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = self.own
        self.imports.reveal(self.name)


def _answering(imports: Imports) -> Callable[..., Any]:
    """The function that stands in for Python's own. In a traceback it is taken for it, and left out like it."""
    find = imports.find

    def _find_spec(name: str, path: Any, target: Any = None) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_name == FINDING:
            spec = imports.answer(name)
            if spec is not None and name in imports.hidden:
                return spec
            if imports.log is not None:
                imports.log.append((_depth(frame), name, imports._is_as_before()))
            if spec is not None:
                return spec
        return find(name, path, target)

    _find_spec.__code__ = _find_spec.__code__.replace(co_filename=FROZEN)
    return _find_spec


def _depth(frame: FrameType | None) -> int:
    """How many modules are being made around this import."""
    depth = 0
    while frame is not None:
        depth += frame.f_code.co_name == LOADING and frame.f_code.co_filename == FROZEN
        frame = frame.f_back
    return depth
