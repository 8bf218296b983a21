"""What the package imports at its top is what `pip install nanogrid` brings: an extra is imported where it is used."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
INSIDE = {ROOT / "nanogrid" / "execution" / "runner" / "inside", ROOT / "nanogrid" / "execution" / "layers" / "inside"}
"""Programs of containers: they run there, with what is there."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_at_the_top(statements: list[ast.stmt]) -> Iterator[str]:
    """Packages that are imported whenever the module is; what only type checkers follow is left out."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module.partition(".")[0]
        elif isinstance(statement, (ast.Try, ast.ClassDef)):
            yield from imported_at_the_top(statement.body)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) != "TYPE_CHECKING":
            yield from imported_at_the_top([*statement.body, *statement.orelse])


def test_no_module_imports_an_extra_at_its_top() -> None:
    """Every distribution that an import needs is in the lock of the wheel without extras."""
    lock = (ROOT / "requirements" / "runtime.txt").read_text()
    locked = {canonical(name) for name in re.findall(r"^([A-Za-z0-9][\w.-]*)==", lock, re.MULTILINE)}
    distributions = packages_distributions()
    strange = [
        f"{path.relative_to(ROOT)}: {package}"
        for path in sorted((ROOT / "nanogrid").rglob("*.py"))
        if not INSIDE & set(path.parents)
        for package in imported_at_the_top(ast.parse(path.read_text()).body)
        if package not in sys.stdlib_module_names and package != "nanogrid"
        if not {canonical(name) for name in distributions.get(package, [])} & locked
    ]
    assert strange == []


def test_the_lock_of_the_lowest_versions_is_made_from_the_bounds() -> None:
    """Else what is tested there is not what pyproject.toml promises: `make lock` makes it anew."""
    lock = (ROOT / "requirements" / "lowest.txt").read_text()
    locked = dict(re.findall(r"^([A-Za-z0-9][\w.-]*)==(\S+)", lock, re.MULTILINE))
    for asked in map(Requirement, requires("nanogrid") or []):
        if asked.marker is None or any(
            asked.marker.evaluate({"extra": extra}) for extra in ("local", "charts", "otel")
        ):
            (lowest,) = [one.version for one in asked.specifier if one.operator == ">="]
            assert Version(locked[canonical(asked.name)]) == Version(lowest), asked
