"""Modules that are imported in advance and hidden until the function imports them.

The rule: a program sees what it would see without us. A hidden module is not in `sys.modules` and no attribute of its package. An import
statement reveals it, together with everything that importing it would have loaded, in the same order. If anything has changed that could
make the import find another module, or make the module different, all hidden modules are dropped. What a program imports in its prologue
(`prologue.py`) comes before any change.

Python calls `_frozen_importlib._find_spec` for every module that is not loaded. For a hidden module we return its own spec, whose loader
then reveals the module, once, instead of executing it.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH109, PTH116, PTH208
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _locale
import atexit
import builtins
import os
import sys

from nanogrid_warm import prologue, reexec, vendored
from nanogrid_warm.paths import WORKSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from types import FrameType
    from typing import Any

IMPORTING = compile("__import__(name)", WORKSPACE + "/main.py", "exec")
STREAMS = ("stdin", "stdout", "stderr")
"""The standard library reads them when it uses them, not when it is imported. A handler has other ones from the start."""
COMPARABLE = (int, float, str, bytes, tuple)
VARYING = ("__main__", "site", "_frozen_importlib")
"""Modules that differ from run to run, or that this module changes."""
FROZEN = "<frozen importlib._bootstrap>"
FINDING, LOADING = "_find_and_load_unlocked", "_load_unlocked"
CACHE = "__pycache__"


class Imports:
    """The hidden modules, the groups in which they are revealed, and the log of a run's imports."""

    def __init__(self) -> None:
        self.bootstrap = sys.modules["_frozen_importlib"]
        self.find_and_load = self.bootstrap._find_and_load
        self.find_spec = self.bootstrap._find_spec
        """Python's own functions, which are replaced at times."""
        self.singletons: dict[str, Any] = {"atexit": atexit} if sys.version_info < (3, 10) else {}
        """Modules that must not exist twice. Before 3.10 a second `atexit` forgets the callbacks of the first one."""
        self.hidden: dict[str, Any] = {}
        self.parents: dict[str, Any] = {}
        """By name: the package from which a hidden module was removed as an attribute."""
        self.groups: dict[str, list[str]] = {}
        """By name: the modules that importing this one has loaded, in order."""
        self.roots: list[str] = []
        """The modules that were imported in advance in the first process, in order."""
        self.prologue_roots: list[str] = []
        """The program's prologue, if it was imported in this process."""
        self.log: list[tuple[int, str, bool, bool, bool]] | None = None
        """The run's imports: depth, module, whether the finders are unchanged, whether it is new (not revealed), whether in the prologue."""
        self.prologue: frozenset[str] = frozenset()
        """The modules that the program is known to import in its prologue."""
        self._watch = prologue.PrologueWatch()
        self._modules_before: list[tuple[str, Any, dict[str, Any]]] = []
        self._surroundings_before: list[Any] = []
        self._replays = False
        self.path: list[str] = []
        self.finders: list[Any] = []
        self.path_hooks: list[Any] = []
        self.added_finders: dict[str, list[Any]] = {}
        """By name: the finders that importing this module of the prologue has added at the end of `sys.meta_path`."""
        self.import_function: object = None
        self.workspace_names: frozenset[str] = frozenset()
        self.changed_ns = 0

    # -- before the function's code runs

    def hide(self, known: Collection[str], roots: Sequence[str] = ()) -> None:
        """Hide every module that is not in `known`. `roots` are the imports that have loaded them, in order."""
        for name in [name for name in sys.modules if name not in known]:
            self.hidden[name] = sys.modules.pop(name)
        for name, module in self.hidden.items():
            package, _, leaf = name.rpartition(".")
            parent = self.hidden.get(package) or sys.modules.get(package)
            if package and vars(parent).get(leaf) is module:
                delattr(parent, leaf)
                self.parents[name] = parent
        self.roots = [*self.roots, *roots]
        varying = [sys.modules[name] for name in VARYING if name in sys.modules]
        self._modules_before = [
            (name, module, dict(vars(module)))
            for name, module in {**sys.modules, **self.hidden}.items()
            if _is_standard(module) and not any(module is one for one in varying)  # some have several names
        ]

    def hide_prologue(self, known: Collection[str], names: Sequence[str]) -> None:
        """Hide again what `replay` has loaded."""
        for finders in self.added_finders.values():
            for finder in finders:
                sys.meta_path.remove(finder)
        self.hide(known)
        self.prologue_roots = list(names)

    def replay(self, names: Sequence[str], importer: dict[str, Any]) -> Iterator[str]:
        """Import what the program will import in its prologue, as it will: hidden modules are revealed one after the other.

        `importer` is the namespace of the module that seems to import them. Yields the name of each imported module. Raises what the
        imports raise.
        """
        roots = list(self.roots)
        self._remember(sys.path)
        self._replays = True  # no code has run that could have changed anything
        self.bootstrap._find_spec = _replacement(self)
        try:
            for name in names:
                if name not in sys.modules:
                    known = len(sys.meta_path)
                    self.load(name, importer)
                    self.added_finders[name] = sys.meta_path[known:]
                    yield name
        finally:
            self.bootstrap._find_spec = self.find_spec
            self.roots = roots
            self._replays = False

    def reveal_all(self) -> None:
        """Reveal every hidden module."""
        for name in list(self.hidden):
            self._reveal(name)

    def load(self, name: str, importer: dict[str, Any]) -> None:
        """Import a module now, in this namespace, and record what that loads. Raises what the import raises."""
        self.bootstrap._find_and_load = self._recorded
        try:
            exec(IMPORTING, importer, {"name": name})  # noqa: S102
        finally:
            self.bootstrap._find_and_load = self.find_and_load

    def _recorded(self, name: str, import_: Callable[..., Any]) -> Any:
        if name in sys.modules:  # `importlib` asks for it again: what its import loaded is recorded
            return self.find_and_load(name, import_)
        before, is_hidden = set(sys.modules), name in self.hidden
        if name in self.singletons:
            module = sys.modules[name] = self.singletons[name]
        else:
            module = self.find_and_load(name, import_)
        if is_hidden or name not in self.groups:  # else the program removed it from `sys.modules` to get a second one
            self.groups[name] = [name for name in sys.modules if name not in before]
        return module

    def shadowed(self, names: Iterable[str]) -> bool:
        """Return whether files or folders of these names would be found in place of a hidden module."""
        tops = {name.partition(".")[0] for name in self.hidden}
        tops -= {name for name in tops if prologue.is_in_workspace(self.hidden.get(name))}
        return any(name.partition(".")[0] in tops for name in names)

    def forget(self) -> None:
        """Drop the hidden modules. From now on Python itself imports every module."""
        self.hidden, self.groups = {}, {}

    def activate(self, *, learn: bool) -> None:
        """Answer imports from now on, in the child that is about to run the function."""
        self.log = [] if learn else None
        if not (learn or self.hidden or self.singletons):
            return
        self._remember([WORKSPACE, *sys.path])
        if self.shadowed(self.workspace_names):
            self.forget()
        self.bootstrap._find_spec = _replacement(self)

    def _remember(self, path: Sequence[str]) -> None:
        """Remember how Python finds modules now, and what modules find around them."""
        self.path = list(path)
        self.finders = list(sys.meta_path)
        self.path_hooks = list(sys.path_hooks)
        self.import_function = builtins.__import__
        self.workspace_names = self._list_workspace()
        self._surroundings_before = self._surroundings()

    # -- while it runs

    def spec_of_hidden(self, name: str) -> Any:
        """Return the spec that reveals the hidden module of this name; None if Python must find the module."""
        module = self.hidden.get(name) or self.singletons.get(name)
        spec: Any = getattr(module, "__spec__", None)
        if getattr(spec, "name", None) != name or (name not in self.groups and name not in self.singletons):
            return None
        if not self._finders_are_unchanged() or not (
            name in self.prologue or self._replays or self._modules_are_unchanged()
        ):
            self.forget()
            return None
        spec.loader = RevealingLoader(self, name, module, spec.loader)
        return spec

    def reveal(self, name: str) -> None:
        """Reveal what importing this module would have loaded, and everything that comes before it in the learned order."""
        for roots in (self.prologue_roots, self.roots):
            if any(name in self.groups.get(root, ()) for root in roots):
                self._reveal_until(name, roots)
                break
        for member in self.groups.get(name, ()):
            self._reveal(member)

    def _reveal_until(self, name: str, roots: list[str]) -> None:
        for position, root in enumerate(roots, 1):
            for member in self.groups.get(root, ()):
                self._reveal(member)
            sys.meta_path.extend(self.added_finders.pop(root, ()))
            if name in self.groups.get(root, ()):
                del roots[:position]
                return

    def _reveal(self, name: str) -> None:
        module = self.hidden.pop(name, None)
        if module is None or name in sys.modules:
            return
        sys.modules[name] = module
        parent = self.parents.pop(name, None)
        if parent is not None:
            setattr(parent, name.rpartition(".")[2], module)

    def _finders_are_unchanged(self) -> bool:
        """Return whether Python would still find the same modules in the same places as in advance.

        Finders at the end are only asked for modules that the others do not find, and so for none of the hidden ones.
        """
        if (
            sys.path[: len(self.path)] != self.path
            or sys.meta_path[: len(self.finders)] != self.finders
            or sys.path_hooks != self.path_hooks
            or builtins.__import__ is not self.import_function
        ):
            return False
        return os.stat(WORKSPACE).st_mtime_ns == self.changed_ns or self._list_workspace() == self.workspace_names

    def _modules_are_unchanged(self) -> bool:
        """Return whether a module of the standard library would find the same modules and surroundings if it were imported now."""
        modules, hidden = sys.modules, self.hidden
        return _comparable(self._surroundings()) == _comparable(self._surroundings_before) and all(
            modules.get(name, hidden) is (hidden if name in hidden else module) and not is_changed(module, before)
            for name, module, before in self._modules_before
        )

    def _surroundings(self) -> list[Any]:
        """Return what modules of the standard library read when they are imported, besides other modules."""
        try:
            folder = os.getcwd()
        except OSError:
            folder = ""
        return [folder, sys.getrecursionlimit(), _locale.setlocale(_locale.LC_ALL), os.environ._data.copy()]

    def log_import(self, frame: FrameType, name: str, *, new: bool) -> None:
        """Log an import, if this run's imports are logged."""
        if self.log is not None:
            in_prologue = self._watch.includes(frame)
            self.log.append((_depth(frame), name, self._finders_are_unchanged(), new, in_prologue))

    def found(self, spec: Any) -> Any:
        """Return the spec that Python has found for a module, after the watch has seen it."""
        if self.log is not None:
            self._watch.note_found(spec)
        return spec

    def _list_workspace(self) -> frozenset[str]:
        """Return the names in the workspace that an import could find, and remember when they last changed."""
        self.changed_ns = os.stat(WORKSPACE).st_mtime_ns
        return frozenset(name for name in os.listdir(WORKSPACE) if name != CACHE)


class RevealingLoader:
    """Replaces a hidden module's loader while the module is revealed."""

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


def _replacement(imports: Imports) -> Callable[..., Any]:
    """Return the function that replaces Python's own `_find_spec`. It has the same name and file, so tracebacks leave it out too."""
    find_spec = imports.find_spec

    def _find_spec(name: str, path: Any, target: Any = None) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_name == FINDING:
            spec = imports.spec_of_hidden(name)
            imports.log_import(frame, name, new=name not in imports.hidden)
            if spec is not None:
                return spec
            return imports.found(find_spec(name, path, target))
        return find_spec(name, path, target)

    _find_spec.__code__ = _find_spec.__code__.replace(co_filename=FROZEN)
    return _find_spec


def _depth(frame: FrameType | None) -> int:
    """Return how many modules are being loaded around this import."""
    depth = 0
    while frame is not None:
        depth += frame.f_code.co_name == LOADING and frame.f_code.co_filename == FROZEN
        frame = frame.f_back
    return depth


Imports._recorded.__code__ = Imports._recorded.__code__.replace(co_filename=FROZEN)
"""A warning names the code that imports. Python skips the import machinery by this file name."""


def _is_standard(module: Any) -> bool:
    """Return whether this is no module of the function's packages."""
    return hasattr(module, "__dict__") and not vendored.is_package_file(str(getattr(module, "__file__", "")))


def _comparable(surroundings: list[Any]) -> list[object]:
    """Return the surroundings with only the startup variables of the environment. They are selected on demand, not in each run."""
    return [*surroundings[:-1], reexec.startup_variables(reexec.as_texts(surroundings[-1]))]


def is_changed(module: Any, before: dict[str, Any]) -> bool:
    """Return whether a name in a module has another value than before, except for values that the module itself fills in."""
    names = vars(module)
    try:
        if names == before:
            return False
    except Exception:  # noqa: BLE001, S110  # some objects cannot be compared
        pass
    for name in {**before, **names}:
        old, new = before.get(name, before), names.get(name, before)
        if name in STREAMS and module is sys:
            continue
        if old is new or (isinstance(old, COMPARABLE) and type(old) is type(new) and old == new):
            continue
        if old is before and sys.modules.get(f"{module.__name__}.{name}") is new:
            continue
        fills_in = old is None or (old is before and "__getattr__" in before) or name[:1] == "_"
        if not fills_in or callable(old) or callable(new):
            return True
    return False
