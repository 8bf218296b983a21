"""Holds an interpreter at the last step before it opens its script; see `../__main__.py`.

The rule: everything that brought this module here is undone before the first fork. Python finds it through PYTHONPATH, as the last module
that it imports by itself. It then runs the image's own `sitecustomize` and `usercustomize`.

A sub-interpreter in a run's process starts with the paths of the first interpreter, so it imports this module too. It then gets what it
would have found without us.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: BLE001, PTH100, PTH120
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

import _frozen_importlib
import marshal
import os
import site
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Callable, Sequence
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

FAILED = 70
STATE = "NANOGRID_RUNNER"
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = "/nanogrid/packages"
"""The run's own packages. The held interpreter was started without them."""


def _remove_own_path() -> None:
    """Remove our folder from the places where Python looks for modules."""
    sys.path.remove(HERE)
    sys.path_importer_cache.pop(HERE, None)
    _, _, before = os.environ["PYTHONPATH"].partition(os.pathsep)
    if before:
        os.environ["PYTHONPATH"] = before
    else:
        del os.environ["PYTHONPATH"]


class _Programs:
    """Imports our modules from the code that the process before `exec` has compiled (`reexec._programs`)."""

    def __init__(self, programs: "dict[str, tuple[str, CodeType]]") -> None:
        self._programs = programs

    def find_spec(
        self, name: str, _path: "Sequence[str] | None" = None, _target: "ModuleType | None" = None
    ) -> "_frozen_importlib.ModuleSpec | None":
        if name not in self._programs:
            return None
        path, _ = self._programs[name]
        loader: Any = self
        spec = _frozen_importlib.ModuleSpec(name, loader, origin=path, is_package=path.endswith("__init__.py"))
        spec.has_location = True
        return spec

    def create_module(self, _spec: "_frozen_importlib.ModuleSpec") -> None:
        return None

    def exec_module(self, module: "ModuleType") -> None:
        _, code = self._programs.pop(module.__name__)
        exec(code, vars(module))  # noqa: S102


def _load(memory: int, faithful: bool) -> "Callable[[], None]":
    """Return the function that holds the interpreter. None of our modules stays in `sys.modules`."""
    with open(memory, "rb") as file:  # as `reexec._write_memory_file` has written it
        programs, fields = _Programs(marshal.load(file)), marshal.load(file)  # noqa: S302
    before = dict(sys.modules)
    sys.meta_path.insert(0, programs)
    try:
        from nanogrid_warm import serve

        return serve.prepare(fields, before, faithful)
    finally:
        sys.meta_path.remove(programs)
        for name in [name for name in sys.modules if name not in before]:
            del sys.modules[name]


def _run_image_customization() -> bool:
    """Run the image's own `sitecustomize`, now that ours cannot be found. Returns whether it ran, or there is none."""
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        return error.name == "sitecustomize"
    except Exception:  # Python would report it in each run
        return False
    return True


def _serve(memory: int, *, faithful: bool) -> None:
    """Hold this interpreter. Only a child of it returns: this process must never open a script, as root."""
    try:
        _load(memory, faithful)()
    except BaseException as error:
        _fail(error)


def _fail(error: BaseException) -> "NoReturn":
    """End this process with the reason on stderr. If it continued, it would run a function as root."""
    reason = (str(error) or type(error).__name__).encode("ascii", "backslashreplace")
    os.write(2, b"nanogrid: the interpreter could not be held for its run: " + reason + b"\n")
    os._exit(FAILED)


def _restore_sub_interpreter() -> None:
    """Make a sub-interpreter of a run what it would be without us."""
    place = sys.path.index(HERE)
    sys.path[place : place + 1] = [PACKAGES] if os.environ.get("PYTHONPATH") == PACKAGES else []
    sys.path_importer_cache.pop(HERE, None)
    del sys.modules["sitecustomize"]
    import sitecustomize  # noqa: F401


def _hold() -> None:
    """Make `site` call us in place of its own last step."""
    _remove_own_path()
    memory = int(os.environ.pop(STATE))
    del sys.modules["sitecustomize"]
    faithful = _run_image_customization()
    own = site.execusercustomize
    if not site.ENABLE_USER_SITE:
        _serve(memory, faithful=faithful)
        return

    def held() -> None:
        site.execusercustomize = own
        own()
        _serve(memory, faithful=faithful)

    site.execusercustomize = held


if STATE in os.environ:
    try:
        _hold()
    except BaseException as error:
        _fail(error)
else:
    _restore_sub_interpreter()
if "sitecustomize" not in sys.modules:
    raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
