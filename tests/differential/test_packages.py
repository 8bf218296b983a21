"""Programs with packages in their code behave in a warm container as with a Python of their own.

The packages are those of the benchmark. The large ones run with `make test-packages`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.packages import PACKAGES, Package
from tests.differential.vendored import code, container, difference, runs
from tests.support.runner_box import Box

BEFORE = """import os, sys
before = sorted(set(os.listdir(".")) - {"__pycache__"})
"""
"""Compiled code of packages may be there from the start: docs/runtimes.md says so."""

AFTER = """
import subprocess, threading, traceback, warnings
module = sys.modules[{module!r}]
print(getattr(module, "__version__", None), getattr(module, "__file__", None), list(getattr(module, "__path__", [])))
print(os.getcwd(), before, sorted(set(os.listdir(".")) - {{"__pycache__"}}))
names = sorted(name for name in sys.modules if name.partition(".")[0] == {top!r})
print({{name: getattr(sys.modules[name], "__cached__", None) for name in names}})
print(threading.active_count(), len(os.listdir(os.path.join(os.sep, "proc", "self", "task"))))
print(os.getpid() == os.getpgrp(), os.getpid() == os.getsid(0), os.getpid() == os.getppid())
print(subprocess.check_output([sys.executable, "-Sc", "import os; print(os.getppid())"]) == b"%d\\n" % os.getpid())
print(sys.path, [getattr(one, "__name__", type(one).__name__) for one in sys.meta_path], len(sys.path_hooks))
print(sorted(os.environ.items()), [str(one[2]) for one in warnings.filters])
print(sorted(os.listdir("/tmp")), {module!r} in sys.modules)
try:
    {fails}
except Exception:
    traceback.print_exc()
"""


def program(package: Package) -> dict[str, str]:
    """Uses the package, and prints everything that its import may have left."""
    top = package.module.partition(".")[0]
    after = AFTER.format(module=package.module, top=top, fails=package.fails)
    return {"main.py": BEFORE + package.uses + after}


@pytest.fixture(scope="module")
def here() -> Iterator[Box]:
    """One container for all packages."""
    with container() as made:
        yield made


@pytest.mark.parametrize(
    "package", [pytest.param(it, id=it.name, marks=[pytest.mark.packages] if it.heavy else []) for it in PACKAGES]
)
def test_programs_with_packages_cannot_tell(here: Box, package: Package) -> None:
    """Output, traceback, module table, threads, processes and files are the same in all runs."""
    with code(program(package), package.pins) as folder:
        assert difference(here, folder) == ""


@pytest.mark.parametrize("name", ["pyyaml", "jinja2", "requests"])
def test_a_package_in_the_code_does_not_cost_an_interpreter(here: Box, name: str) -> None:
    """Words such as `gc` in the sources of a package do not matter: only the program's own modules decide."""
    package = next(it for it in PACKAGES if it.name == name)
    with code({"main.py": package.uses}, package.pins) as folder:
        found = runs(here, folder)
        assert [run.out.decode() for run in found] == [package.prints] * len(found)
        assert found[-1].how == "python"
