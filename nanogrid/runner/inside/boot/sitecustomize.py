"""Holds an interpreter at the last step before it opens its script; see `../__main__.py`.

The rule: whatever brought this module here is undone before the first fork. Python finds it through PYTHONPATH, as the last
thing that it imports by itself. The image's own `sitecustomize` and `usercustomize` are run in its place.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH100, PTH120
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

import os
import site
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Callable


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


def _load(folder: str, state: int) -> "Callable[[], None]":
    """The function that holds the interpreter. Leaves no module of ours behind."""
    before = dict(sys.modules)
    importers = dict(sys.path_importer_cache)
    sys.path.insert(0, folder)
    try:
        from nanogrid_warm import serve

        return serve.prepare(state, before)
    finally:
        del sys.path[0]
        for name in [name for name in sys.modules if name not in before]:
            del sys.modules[name]
        for name in [name for name in sys.path_importer_cache if name not in importers]:
            del sys.path_importer_cache[name]


def _hold() -> None:
    """Let `site` call us in place of its own last step."""
    folder = _take_back_path()
    state = int(os.environ.pop("NANOGRID_RUNNER"))
    del sys.modules["sitecustomize"]
    own = site.execusercustomize
    try:
        import sitecustomize  # noqa: F401  # the image's own, now that ours cannot be found
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    if not site.ENABLE_USER_SITE:
        _load(folder, state)()
        return

    def held() -> None:
        site.execusercustomize = own
        own()
        _load(folder, state)()

    site.execusercustomize = held


_hold()
if "sitecustomize" not in sys.modules:
    raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
