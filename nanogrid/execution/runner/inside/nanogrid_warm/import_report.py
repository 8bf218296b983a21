"""The import report: what one run tells the next ones of the same code. Which modules it imported, and which of them in its prologue.

A report is a short text with one line per module:

    s NAME   a module of the standard library that the run imported
    b NAME   a module of the standard library or of a package that the program imported in its prologue (`prologue.py`), in order
    o PATH   a module of the function's own, by the path of its source
    h NAME   the own module that the run's handler is in

The rule: a report comes from the function, so nobody trusts it. A one-shot child reads it as the function's user and passes on only lines whose
modules exist in the image, the layer or the code, each in its one allowed form. So the first process never holds a word of the
function's own. It imports only modules of the standard library.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH113, PTH120, PTH208
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os
import stat
import sys

from nanogrid_warm import channel, paths, vendored

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from typing import Any

LIMIT_BYTES = 1 << 16
LINES_LIMIT = 500
REPORTS_LIMIT = 5
OWN = paths.WORKSPACE + "/"
PACKAGES = paths.PACKAGES + "/"
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
    "sre_compile",
    "sre_constants",
    "sre_parse",
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
"""Modules of the standard library that print, warn, or change the process when they are imported."""


def write(log: list[tuple[int, str, bool, bool, bool]], handler: str) -> None:
    """Write a run's report from the log of its imports (`Imports.log`) and the module of its handler.

    Called at the very end of a run, in the function's process.
    """
    lines: list[str] = ["h " + handler] if handler else []
    importing: dict[int, str] = {}
    """By depth: the origin of the module that is being imported there."""
    for depth, name, unchanged, new, in_prologue in log:
        origin = _origin(name, sys.modules.get(name)) if unchanged else ""
        importing[depth] = origin
        path = _own_source(sys.modules.get(name))
        if path:
            lines.append("o " + path)
        if origin and in_prologue:
            lines.append("b " + name)
        if new and origin == "s" and origin not in [importing.get(outer) for outer in range(depth)]:
            lines.append("s " + name)
    if not lines:
        return
    try:
        file = os.open(paths.IMPORT_REPORT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    os.write(file, "\n".join(lines).encode("ascii", "replace")[:LIMIT_BYTES])
    os.close(file)


def _origin(name: str, module: Any) -> str:
    """Return s for the standard library, p for the function's packages, "" for neither and for what is never imported in advance."""
    spec = getattr(module, "__spec__", None)
    origin = getattr(spec, "origin", None) or ""
    if vendored.is_package_file(origin):
        return "p"
    if name.partition(".")[0] in NEVER:
        return ""
    if origin in ("built-in", "frozen") or (origin.startswith(STANDARD) and "-packages" + os.sep not in origin):
        return "s"
    return ""


def _own_source(module: Any) -> str:
    """Return the path of a module of the function's own that was loaded from its source; "" for any other."""
    origin = getattr(getattr(module, "__spec__", None), "origin", None) or ""
    return (
        origin
        if vendored.is_own_file(origin) and origin.endswith(".py") and origin.isascii() and origin.isprintable()
        else ""
    )


def valid_lines() -> bytes:
    """Return the lines of the last run's report that may be passed on. Called in a one-shot child, as the function's user."""
    lines: list[str] = []
    room = channel.PACKET_BYTES // 2
    for line in dict.fromkeys(_read().split("\n")[:LINES_LIMIT]):
        room -= len(line) + 1
        if _is_valid(*line.partition(" ")[::2]) and room > 0:
            lines.append(line)
    return "\n".join(lines).encode() or b"\n"


def _read() -> str:
    try:
        file = os.open(paths.IMPORT_REPORT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return ""
    return os.read(file, LIMIT_BYTES).decode("ascii", "replace")


class ImportReport:
    """The valid lines of a report, as the first process uses them."""

    def __init__(self, packet: bytes) -> None:
        found: dict[str, list[str]] = {"s": [], "b": [], "o": [], "h": [""]}
        for line in packet.decode("ascii", "replace").split("\n"):
            kind, _, name = line.partition(" ")
            if kind in found:
                found[kind].append(name)
        self.standard = found["s"]
        """Modules of the standard library."""
        self.prologue = found["b"]
        """The modules that the program imported in its prologue, in order: of the standard library and of packages."""
        self.own_sources = found["o"]
        """Paths of own modules."""
        self.handler = found["h"][-1]
        """The own module that the run's handler is in; "" for a script."""


def _is_valid(kind: str, name: str) -> bool:
    """Return whether the line's module exists in a place for its kind, which no run can have written."""
    if kind == "o":
        path = paths.CODE + "/" + name[len(OWN) :]
        return is_own_source(name) and os.path.isfile(path) and has_no_links(paths.CODE, os.path.dirname(path))
    if not _is_name(name):
        return False
    if kind == "h":
        return _has_module(paths.CODE + "/", name)
    if kind == "b" and is_package(name):
        return True
    return kind in ("s", "b") and name.partition(".")[0] not in NEVER and is_standard(name)


def is_own_source(path: str) -> bool:
    """Return whether a path is a source file in the run's copy of the code, in its one allowed form."""
    return path.startswith(OWN) and path.endswith(".py") and paths.is_normalized(path)


def has_no_links(folder: str, path: str) -> bool:
    """Return whether no link lies between a folder and a path in it. A link that leads back would give everything many names."""
    return os.path.realpath(path) == os.path.realpath(folder) + path[len(folder.rstrip("/")) :]


def _is_name(text: str) -> bool:
    parts = text.split(".")
    return len(text) < 200 and all(part.isidentifier() and part != "__main__" for part in parts)


def is_standard(name: str) -> bool:
    """Return whether the first process may import this name: the standard library has it, and nothing else does."""
    names = getattr(sys, "stdlib_module_names", None)
    top, _, rest = name.partition(".")
    if rest:
        return is_standard(top) and _has_module(STANDARD, name)
    if names is not None:
        return top in names
    return (
        top in sys.builtin_module_names
        or _has_module(STANDARD, top)
        or any(entry.partition(".")[0] == top for entry in os.listdir(STANDARD + "lib-dynload"))
    )


def is_package(name: str) -> bool:
    """Return whether a package of the function, in its layer or among its code, has a module of this name."""
    return _has_module(PACKAGES, name) or any(_has_module(folder, name) for folder in vendored.folders_of(name))


def _has_module(folder: str, name: str) -> bool:
    """Return whether there is a module of this name below `folder`: its source, its package, or a compiled one."""
    place, _, leaf = (folder + name.replace(".", "/")).rpartition("/")
    try:
        entries = os.listdir(place)
    except OSError:
        return False
    if leaf not in entries and not any(
        entry.partition(".")[0] == leaf and entry.endswith((".py", ".so")) for entry in entries
    ):
        return False
    return has_no_links(folder, place)
