"""Holds an interpreter at the last step before it opens its script; see `../__main__.py`.

The rule: whatever brought this module here is undone before the first fork. Python finds it through PYTHONPATH, as the last
thing that it imports by itself. The image's own `sitecustomize` and `usercustomize` are run in its place.

A further interpreter in a run's process (a sub-interpreter) starts with the paths of the first one, and so comes by here too: it is
given what it would have found without us.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: BLE001, PTH100, PTH120
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

import _frozen_importlib
import marshal
import os
import site
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Callable, Sequence
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

FAILED = 70
STATE = "NANOGRID_RUNNER"
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = "/nanogrid/packages"
"""Of the run: where its own packages are, the held interpreter was started without them."""


def _take_back_path() -> None:
    """Remove our folder from where Python would look for modules."""
    sys.path.remove(HERE)
    sys.path_importer_cache.pop(HERE, None)
    _, _, before = os.environ["PYTHONPATH"].partition(os.pathsep)
    if before:
        os.environ["PYTHONPATH"] = before
    else:
        del os.environ["PYTHONPATH"]


class _Programs:
    """Imports our modules from code that the process before has compiled."""

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
    """The function that holds the interpreter. Leaves no module of ours behind."""
    with open(memory, "rb") as file:
        programs, state = _Programs(marshal.load(file)), marshal.load(file)  # noqa: S302
    before = dict(sys.modules)
    sys.meta_path.insert(0, programs)
    try:
        from nanogrid_warm import serve

        return serve.prepare(state, before, faithful)
    finally:
        sys.meta_path.remove(programs)
        for name in [name for name in sys.modules if name not in before]:
            del sys.modules[name]


def _image_has_its_way() -> bool:
    """Run the image's own `sitecustomize`, now that ours cannot be found. Whether it ran, or there is none."""
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        return error.name == "sitecustomize"
    except Exception:  # Python would complain about it in each run
        return False
    return True


def _serve(memory: int, *, faithful: bool) -> None:
    """Hold this interpreter. Only a child of it returns: this process must never go on to open a script, as root."""
    try:
        _load(memory, faithful)()
    except BaseException as error:
        _fail(error)


def _fail(error: BaseException) -> "NoReturn":
    """End this process, and say why: what goes on without being held would run a function as root."""
    reason = (str(error) or type(error).__name__).encode("ascii", "backslashreplace")
    os.write(2, b"nanogrid: the interpreter could not be held for its run: " + reason + b"\n")
    os._exit(FAILED)


def _step_aside() -> None:
    """Let a further interpreter of a run be as it would be without us."""
    place = sys.path.index(HERE)
    sys.path[place : place + 1] = [PACKAGES] if os.environ.get("PYTHONPATH") == PACKAGES else []
    sys.path_importer_cache.pop(HERE, None)
    del sys.modules["sitecustomize"]
    import sitecustomize  # noqa: F401


def _hold() -> None:
    """Let `site` call us in place of its own last step."""
    _take_back_path()
    memory = int(os.environ.pop(STATE))
    del sys.modules["sitecustomize"]
    faithful = _image_has_its_way()
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
    _step_aside()
if "sitecustomize" not in sys.modules:
    raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
