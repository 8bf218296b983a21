"""Checks that code has what is started: the runtime's required file, or a handler's module.

The rule: code is refused only if the run would certainly fail, and the error names what the code has instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanogrid.errors import CodeCorruptError

BRING_MODULES = frozenset({"requirements.txt", "build.sh"})
"""Files at the top of the code that may create or install a handler's module: only the run shows whether they do."""

BESIDE = (".", "__")
"""First characters of folders that tools put beside the code (`.git`, `__MACOSX`)."""


@dataclass(frozen=True)
class HandlerModule:
    """The module or package, at the top of the code, that contains a handler."""

    name: str

    @classmethod
    def of(cls, handler: str) -> HandlerModule:
        """The module of `module.function`; dots or, as in AWS Lambda, slashes separate folders."""
        return cls(handler.rpartition(".")[0].replace("/", ".").partition(".")[0])

    def is_among(self, names: Iterable[str]) -> bool:
        """Whether the names at the top of the code include it, as source, compiled or a package, or a file that may bring it."""
        return any(name in BRING_MODULES or name.partition(".")[0] == self.name for name in names)

    def __str__(self) -> str:
        return f"{self.name}.py (or a package {self.name!a}), which the handler names"


def check_required(folder: Path, required: str | HandlerModule) -> None:
    """Raise CodeCorruptError unless the folder has what is started at its top: a file, or a handler's module."""
    if _has(folder, required):
        return
    what = required if isinstance(required, str) else f"{required},"
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    folders = [name for name in names if name.endswith("/") and not name.startswith(BESIDE)]
    if len(folders) == 1 and _has(folder / folders[0], required):
        raise CodeCorruptError(in_a_folder(f"{what} is", "archive", folders[0]))
    found = ", ".join(ascii(name) for name in names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise CodeCorruptError(f"{what} is missing at the top of the archive, which has {found}: add it there")


def in_a_folder(what_is: str, whole: str, folder: str) -> str:
    """The error for code that was packed with its folder, the most common mistake."""
    return (
        f"{what_is} not at the top of the {whole} but in the folder {folder!a}: "
        "pack the folder's contents instead of the folder"
    )


def is_among(names: Iterable[str], required: str | HandlerModule) -> bool:
    """Whether what is started is among the names at the top of the code."""
    return required in names if isinstance(required, str) else required.is_among(names)


def _has(folder: Path, required: str | HandlerModule) -> bool:
    if isinstance(required, str):
        return (folder / required).is_file()
    return required.is_among(path.name for path in folder.iterdir())
