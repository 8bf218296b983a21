"""Modules that were imported before the function asks for them, hidden until it does.

The rule: what a program can see is what it would see without us. A hidden module is not in `sys.modules` and no attribute of
its package; an import statement brings it out together with all that importing it would have brought, in the same order. And
where anything has changed by which the import could have found another module, or the module something else when it was imported,
all that is hidden is forgotten. What a program imports in its beginning (see `beginning.py`) comes before any change.

Python asks `_frozen_importlib._find_spec` for every module that is not there yet. We answer with the hidden module's own
spec, whose loader for this once brings the module out instead of making it.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH109, PTH116, PTH208
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _locale
import atexit
import builtins
import os
import sys

from nanogrid_warm import begin, beginning
from nanogrid_warm.places import PACKAGES, WORKSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from types import FrameType
    from typing import Any

IMPORTING = compile("__import__(name)", WORKSPACE + "/main.py", "exec")
STREAMS = ("stdin", "stdout", "stderr")
"""The standard library looks at them when it uses them, not when it is imported; a handler's are others from the start."""
PLAIN = (int, float, str, bytes, tuple)
VARYING = ("__main__", "site", "_frozen_importlib")
"""Modules that differ from run to run, or by what is done here."""
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
        self.first_roots: list[str] = []
        """The program's beginning, where that is imported in this process."""
        self.log: list[tuple[int, str, bool, bool, bool]] | None = None
        """How deep, which module, whether found as ever, whether new (not brought out), and whether in the beginning."""
        self.beginning: frozenset[str] = frozenset()
        """What the program is known to import in its beginning."""
        self._watch = beginning.Beginning()
        self._before: list[tuple[str, Any, dict[str, Any]]] = []
        self._surroundings: list[Any] = []
        self._replays = False
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
        varying = [sys.modules[name] for name in VARYING if name in sys.modules]
        self._before = [
            (name, module, dict(vars(module)))
            for name, module in {**sys.modules, **self.hidden}.items()
            if _is_standard(module) and not any(module is one for one in varying)  # some have several names
        ]

    def hide_beginning(self, known: Collection[str], names: Sequence[str]) -> None:
        """Hide again what the beginning has brought."""
        self.hide(known)
        self.first_roots = list(names)

    def replay(self, names: Sequence[str], importer: dict[str, Any]) -> Iterator[str]:
        """Import what the program will import in its beginning, as it will: hidden modules come out one after the other.

        `importer` is the namespace of the module that is to seem to do it. Gives the name of each one that was imported. Raises
        what the imports raise.
        """
        roots = list(self.roots)
        self._remember(sys.path)
        self._replays = True  # nothing has happened yet that anybody could have done
        self.bootstrap._find_spec = _answering(self)
        try:
            for name in names:
                if name not in sys.modules:
                    self.load(name, importer)
                    yield name
        finally:
            self.bootstrap._find_spec = self.find
            self.roots = roots
            self._replays = False

    def show_all(self) -> None:
        """Bring everything out again."""
        for name in list(self.hidden):
            self._show(name)

    def load(self, name: str, importer: dict[str, Any]) -> None:
        """Import a module now, in this namespace, and remember what that brought. Raises what the import raises."""
        self.bootstrap._find_and_load = self._recorded
        try:
            exec(IMPORTING, importer, {"name": name})  # noqa: S102
        finally:
            self.bootstrap._find_and_load = self.own

    def _recorded(self, name: str, import_: Callable[..., Any]) -> Any:
        if name in sys.modules:  # asked for again, by `importlib`: what it has brought is known
            return self.own(name, import_)
        before, is_hidden = set(sys.modules), name in self.hidden
        if name in self.kept:
            module = sys.modules[name] = self.kept[name]
        else:
            module = self.own(name, import_)
        if is_hidden or name not in self.groups:  # else somebody has put it aside, to have another one
            self.groups[name] = [name for name in sys.modules if name not in before]
        return module

    def shadowed(self, names: Iterable[str]) -> bool:
        """Whether files or folders of these names would be found in place of a hidden module."""
        tops = {name.partition(".")[0] for name, module in self.hidden.items() if not beginning.is_own(module)}
        return any(name.partition(".")[0] in tops for name in names)

    def forget(self) -> None:
        """Let nothing be hidden: the next import is Python's own."""
        self.hidden, self.groups = {}, {}

    def arm(self, *, learn: bool) -> None:
        """Answer imports from now on, in the child that is going to run the function."""
        self.log = [] if learn else None
        if not (learn or self.hidden or self.kept):
            return
        self._remember([WORKSPACE, *sys.path])
        if self.shadowed(self.names):
            self.forget()
        self.bootstrap._find_spec = _answering(self)

    def _remember(self, path: Sequence[str]) -> None:
        """Remember by what Python finds modules, and what they find around them."""
        self.path = list(path)
        self.finders = (*sys.meta_path, *sys.path_hooks)
        self.import_ = builtins.__import__
        self.names = self._names()
        self._surroundings = self._around()

    # -- while it runs

    def answer(self, name: str) -> Any:
        """The spec that brings out the hidden module of this name; None where Python has to look for it."""
        module = self.hidden.get(name) or self.kept.get(name)
        spec: Any = getattr(module, "__spec__", None)
        if getattr(spec, "name", None) != name or (name not in self.groups and name not in self.kept):
            return None
        if not self._is_as_before() or not (name in self.beginning or self._replays or self._is_untouched()):
            self.forget()
            return None
        spec.loader = Revealing(self, name, module, spec.loader)
        return spec

    def reveal(self, name: str) -> None:
        """Bring out what importing this module would have brought; of what comes before it in the learned order, all."""
        for roots in (self.first_roots, self.roots):
            if any(name in self.groups.get(root, ()) for root in roots):
                self._reveal_until(name, roots)
                break
        for member in self.groups.get(name, ()):
            self._show(member)

    def _reveal_until(self, name: str, roots: list[str]) -> None:
        for position, root in enumerate(roots, 1):
            for member in self.groups.get(root, ()):
                self._show(member)
            if name in self.groups.get(root, ()):
                del roots[:position]
                return

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

    def _is_untouched(self) -> bool:
        """Whether a module of the standard library would find the same when it is imported now: other modules, and around them."""
        modules, hidden = sys.modules, self.hidden
        return _told(self._around()) == _told(self._surroundings) and all(
            modules.get(name, hidden) is (hidden if name in hidden else module) and not is_changed(module, before)
            for name, module, before in self._before
        )

    def _around(self) -> list[Any]:
        """What modules of the standard library look at when they are imported, beside other modules."""
        try:
            folder = os.getcwd()
        except OSError:
            folder = ""
        return [folder, sys.getrecursionlimit(), _locale.setlocale(_locale.LC_ALL), os.environ._data.copy()]

    def note(self, frame: FrameType, name: str, *, new: bool) -> None:
        """Log an import."""
        if self.log is not None:
            quiet = self._watch.lasts(frame)
            self.log.append((_depth(frame), name, self._is_as_before(), new, quiet))

    def found(self, spec: Any) -> Any:
        """The spec of a module that Python has found."""
        if self.log is not None:
            self._watch.note(spec)
        return spec

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
            imports.note(frame, name, new=name not in imports.hidden)
            if spec is not None:
                return spec
            return imports.found(find(name, path, target))
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


Imports._recorded.__code__ = Imports._recorded.__code__.replace(co_filename=FROZEN)
"""A warning is meant for who imports, not for the machinery in between, which Python knows by this name."""


def _is_standard(module: Any) -> bool:
    """Whether it is no module of the function's packages."""
    return hasattr(module, "__dict__") and not str(getattr(module, "__file__", "")).startswith(PACKAGES + "/")


def _told(around: list[Any]) -> list[object]:
    """The same with those variables alone that Python looks at. They are told apart where somebody asks, not in each run."""
    return [*around[:-1], begin.special(begin.as_texts(around[-1]))]


def is_changed(module: Any, before: dict[str, Any]) -> bool:
    """Whether a name in a module means something else, but for what the module itself fills in."""
    names = vars(module)
    try:
        if names == before:
            return False
    except Exception:  # noqa: BLE001, S110  # things that do not let themselves be compared
        pass
    for name in {**before, **names}:
        was, value = before.get(name, before), names.get(name, before)
        if name in STREAMS and module is sys:
            continue
        if was is value or (isinstance(was, PLAIN) and type(was) is type(value) and was == value):
            continue
        if was is before and sys.modules.get(f"{module.__name__}.{name}") is value:
            continue
        fills_in = was is None or (was is before and "__getattr__" in before) or name[:1] == "_"
        if not fills_in or callable(was) or callable(value):
            return True
    return False
