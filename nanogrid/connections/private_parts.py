"""Private parts of other packages: names that NanoGrid uses although their authors do not promise to keep them.

The rule: a module that uses such names lists them as `PrivateParts`. A worker and Flower check the lists when they start, and refuse a
version without one of the names in one sentence that names the versions known to work.
"""

from __future__ import annotations

import dis
import inspect
from dataclasses import dataclass
from importlib.metadata import version
from types import CodeType
from typing import Any


@dataclass(frozen=True)
class PrivateParts:
    """The names of one package that NanoGrid relies on.

    `package` is the distribution's name, `known_version` the versions in which all names exist, and `needed_by` the part of
    NanoGrid that uses them. Each entry of `names` is a class, module or function of the package and the
    names in it.
    """

    package: str
    known_version: str
    needed_by: str
    names: tuple[tuple[Any, tuple[str, ...]], ...]

    def problem(self) -> str | None:
        """Why the installed version does not work, as one sentence; None if it has every name."""
        missing = [
            f"{owner.__name__}.{name}" for owner, names in self.names for name in names if not defines(owner, name)
        ]
        if not missing:
            return None
        return (
            f"{self.package} {version(self.package)} has no {', '.join(missing)}, which NanoGrid's {self.needed_by} builds on: "
            f"install {self.package} {self.known_version}"
        )


def defines(owner: Any, name: str) -> bool:
    """Whether a module, class or function has this attribute, or code of it sets such an attribute on an object."""
    if hasattr(owner, name):
        return True
    if inspect.isfunction(owner):
        return _sets(owner.__code__, name)
    members = [member for each in getattr(owner, "__mro__", ()) for member in vars(each).values()]
    return any(_sets(member.__code__, name) for member in members if inspect.isfunction(member))


def _sets(code: CodeType, name: str) -> bool:
    """Whether a function, or one defined in it, sets an attribute of this name."""
    if name in code.co_names and any(
        step.opname == "STORE_ATTR" and step.argval == name for step in dis.get_instructions(code)
    ):
        return True
    return any(_sets(inner, name) for inner in code.co_consts if isinstance(inner, CodeType))
