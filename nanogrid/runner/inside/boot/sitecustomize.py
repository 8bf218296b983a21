"""Holds an interpreter at the last step before it opens its script; see `../__main__.py`.

The rule: whatever brought this module here is undone before the first fork. Python finds it through PYTHONPATH, as the last
thing that it imports by itself. The image's own `sitecustomize` and `usercustomize` are run in its place.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: BLE001, PTH100, PTH120
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

import os
import site
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Callable

FAILED = 70


def _take_back_path() -> str:
    """Remove our folder from where Python would look for modules."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.remove(here)
    sys.path_importer_cache.pop(here, None)
    _, _, before = os.environ["PYTHONPATH"].partition(os.pathsep)
    if before:
        os.environ["PYTHONPATH"] = before
    else:
        del os.environ["PYTHONPATH"]
    return os.path.dirname(here)


def _load(folder: str, state: int, faithful: bool) -> "Callable[[], None]":
    """The function that holds the interpreter. Leaves no module of ours behind."""
    before = dict(sys.modules)
    importers = dict(sys.path_importer_cache)
    sys.path.insert(0, folder)
    try:
        from nanogrid_warm import serve

        return serve.prepare(state, before, faithful)
    finally:
        del sys.path[0]
        for name in [name for name in sys.modules if name not in before]:
            del sys.modules[name]
        for name in [name for name in sys.path_importer_cache if name not in importers]:
            del sys.path_importer_cache[name]


def _image_has_its_way() -> bool:
    """Run the image's own `sitecustomize`, now that ours cannot be found. Whether it ran, or there is none."""
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        return error.name == "sitecustomize"
    except Exception:  # Python would complain about it in each run
        return False
    return True


def _serve(folder: str, state: int, *, faithful: bool) -> None:
    """Hold this interpreter. Only a child of it returns: this process must never go on to open a script, as root."""
    try:
        _load(folder, state, faithful)()
    except BaseException:
        os._exit(FAILED)


def _hold() -> None:
    """Let `site` call us in place of its own last step."""
    folder = _take_back_path()
    state = int(os.environ.pop("NANOGRID_RUNNER"))
    del sys.modules["sitecustomize"]
    faithful = _image_has_its_way()
    own = site.execusercustomize
    if not site.ENABLE_USER_SITE:
        _serve(folder, state, faithful=faithful)
        return

    def held() -> None:
        site.execusercustomize = own
        own()
        _serve(folder, state, faithful=faithful)

    site.execusercustomize = held


try:
    _hold()
except BaseException:
    os._exit(FAILED)
if "sitecustomize" not in sys.modules:
    raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
