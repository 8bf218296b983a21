"""What one run teaches about the next ones of the same code: which modules it imports.

The rule: a lesson comes from the function's side and is read with suspicion. It is a short text of module names; the first
process imports those of the standard library only, which it finds by itself, and never anything that the function brought.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH110, PTH120, PTH208, S108
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from typing import Any

PATH = "/tmp/.nanogrid-lesson"
LIMIT_BYTES = 1 << 16
NAMES_LIMIT = 500
LESSONS_LIMIT = 5
OWN = "/workspace/"
PACKAGES = "/nanogrid/packages/"
STANDARD = os.path.dirname(os.__file__) + os.sep
NEVER = [
    "__main__",
    "__phello__",
    "antigravity",
    "asynchat",
    "asyncore",
    "audioop",
    "binhex",
    "cgi",
    "cgitb",
    "chunk",
    "crypt",
    "distutils",
    "ensurepip",
    "faulthandler",
    "formatter",
    "idlelib",
    "imghdr",
    "imp",
    "lib2to3",
    "mailcap",
    "nis",
    "nntplib",
    "ossaudiodev",
    "parser",
    "pdb",
    "pipes",
    "readline",
    "rlcompleter",
    "site",
    "sitecustomize",
    "smtpd",
    "sndhdr",
    "spwd",
    "sunau",
    "symbol",
    "telnetlib",
    "test",
    "this",
    "tkinter",
    "tracemalloc",
    "turtle",
    "turtledemo",
    "usercustomize",
    "uu",
    "venv",
    "xdrlib",
    "aifc",
]
"""Of the standard library: what speaks, warns, or changes the process when it is imported."""


def write(log: list[tuple[int, str, bool]]) -> None:
    """Leave the lesson of a run, from the log of its imports: how deep, which module, and whether found as ever.

    Called at the very end of a run, in the function's process.
    """
    lines: list[str] = []
    above: dict[int, str] = {}
    for depth, name, as_before in log:
        kind = _kind(name, sys.modules.get(name)) if as_before else ""
        above[depth] = kind
        source = _source(sys.modules.get(name))
        if source:
            lines.append("o " + source)
        if kind and kind not in [above.get(outer) for outer in range(depth)]:
            lines.append(kind + " " + name)
    if not lines:
        return
    try:
        file = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    os.write(file, "\n".join(lines).encode("ascii", "replace")[:LIMIT_BYTES])
    os.close(file)


def _kind(name: str, module: Any) -> str:
    """s: of the standard library; p: of the function's packages; "": of neither, or never to be imported beforehand."""
    spec = getattr(module, "__spec__", None)
    origin = getattr(spec, "origin", None) or ""
    if origin.startswith(PACKAGES):
        return "p"
    if name.partition(".")[0] in NEVER:
        return ""
    if origin in ("built-in", "frozen") or (origin.startswith(STANDARD) and "-packages" + os.sep not in origin):
        return "s"
    return ""


def _source(module: Any) -> str:
    """The path of a module of the function's own that was made from its source; "" for any other."""
    origin = getattr(getattr(module, "__spec__", None), "origin", None) or ""
    return (
        origin
        if origin.startswith(OWN) and origin.endswith(".py") and origin.isascii() and origin.isprintable()
        else ""
    )


def read(uid: int) -> tuple[list[str], list[str], list[str]]:
    """The lesson in the file that a run has left: names of the standard library, of packages, and paths of own modules.

    The file is opened by the first process, which is root without any right over the files of others: so it is made
    readable for its owner alone, and read as its owner.
    """
    os.seteuid(uid)
    try:
        file = os.open(PATH, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return [], [], []
    finally:
        os.seteuid(0)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return [], [], []
        text = os.read(file, LIMIT_BYTES).decode("ascii", "replace")
    finally:
        os.close(file)
    standard: list[str] = []
    packages: list[str] = []
    own: list[str] = []
    for line in text.split("\n")[:NAMES_LIMIT]:
        kind, _, name = line.partition(" ")
        if kind == "o":
            own.append(name)
        elif _is_name(name):
            if kind == "p":
                packages.append(name)
            elif kind == "s" and name.partition(".")[0] not in NEVER:
                standard.append(name)
    return standard, packages, own


def _is_name(text: str) -> bool:
    parts = text.split(".")
    return len(text) < 200 and all(part.isidentifier() and part != "__main__" for part in parts)


def is_standard(name: str) -> bool:
    """Whether the first process may import this name: the standard library has it, and nothing else does."""
    names = getattr(sys, "stdlib_module_names", None)
    top = name.partition(".")[0]
    if names is not None:
        return top in names
    return (
        top in sys.builtin_module_names
        or any(os.path.exists(STANDARD + tail) for tail in (top + ".py", top + os.sep + "__init__.py"))
        or any(entry.partition(".")[0] == top for entry in os.listdir(STANDARD + "lib-dynload"))
    )
