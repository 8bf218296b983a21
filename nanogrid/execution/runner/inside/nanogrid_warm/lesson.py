"""What one run teaches about the next ones of the same code: which modules it imports, and which of them in its beginning.

The rule: a lesson comes from the function's side. It is a short text of module names, which a child reads that is the
function's user; what it hands on are names of modules that the image, the layer or the code really has, each in the one way to
write it, so the first process never holds a word of the function's own. Of those it imports the standard library's only.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH113, PTH120, PTH208
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os
import stat
import sys

from nanogrid_warm import channel, places

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from typing import Any

LIMIT_BYTES = 1 << 16
NAMES_LIMIT = 500
LESSONS_LIMIT = 5
OWN = places.WORKSPACE + "/"
PACKAGES = places.PACKAGES + "/"
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
"""Of the standard library: what speaks, warns, or changes the process when it is imported."""


def write(log: list[tuple[int, str, bool, bool, bool]], handler: str) -> None:
    """Leave the lesson of a run, from the log of its imports (see `imports.py`), and the module that its handler is in.

    Called at the very end of a run, in the function's process.
    """
    lines: list[str] = ["h " + handler] if handler else []
    above: dict[int, str] = {}
    for depth, name, as_before, new, begins in log:
        kind = _kind(name, sys.modules.get(name)) if as_before else ""
        above[depth] = kind
        source = _source(sys.modules.get(name))
        if source:
            lines.append("o " + source)
        if kind and begins:
            lines.append("b " + name)
        if new and kind == "s" and kind not in [above.get(outer) for outer in range(depth)]:
            lines.append("s " + name)
    if not lines:
        return
    try:
        file = os.open(places.LESSON, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
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


def learned() -> bytes:
    """What can be learned of the lesson that a run has left: for `take`. Done in a child, as the function's user."""
    lines: list[str] = []
    room = channel.PACKET_BYTES // 2
    for line in dict.fromkeys(_text().split("\n")[:NAMES_LIMIT]):
        room -= len(line) + 1
        if _is_known(*line.partition(" ")[::2]) and room > 0:
            lines.append(line)
    return "\n".join(lines).encode() or b"\n"


def _text() -> str:
    try:
        file = os.open(places.LESSON, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return ""
    return os.read(file, LIMIT_BYTES).decode("ascii", "replace")


class Lesson:
    """What a child has handed on."""

    def __init__(self, packet: bytes) -> None:
        found: dict[str, list[str]] = {"s": [], "b": [], "o": [], "h": [""]}
        for line in packet.decode("ascii", "replace").split("\n"):
            kind, _, name = line.partition(" ")
            if kind in found:
                found[kind].append(name)
        self.standard = found["s"]
        """Modules of the standard library."""
        self.beginning = found["b"]
        """What was imported in the program's beginning, in this order: of the standard library and of packages."""
        self.own = found["o"]
        """Paths of own modules."""
        self.handler = found["h"][-1]
        """The own module that the run's handler is in; "" for a script."""


def _is_known(kind: str, name: str) -> bool:
    """Whether there is such a module where its kind lies: of this kind, and outside of what a run could have written."""
    if kind == "o":
        path = places.CODE + "/" + name[len(OWN) :]
        return is_own(name) and os.path.isfile(path) and is_straight(places.CODE, os.path.dirname(path))
    if not _is_name(name):
        return False
    if kind == "h":
        return _has_module(places.CODE + "/", name)
    if kind == "b" and is_package(name):
        return True
    return kind in ("s", "b") and name.partition(".")[0] not in NEVER and is_standard(name)


def is_own(path: str) -> bool:
    """Whether a path is that of a source in the run's copy of the code, in the one way to write it."""
    return path.startswith(OWN) and path.endswith(".py") and places.is_plain(path)


def is_straight(folder: str, path: str) -> bool:
    """Whether no link lies between a folder and what is in it: over one that leads back, everything has many names."""
    return os.path.realpath(path) == os.path.realpath(folder) + path[len(folder.rstrip("/")) :]


def _is_name(text: str) -> bool:
    parts = text.split(".")
    return len(text) < 200 and all(part.isidentifier() and part != "__main__" for part in parts)


def is_standard(name: str) -> bool:
    """Whether the first process may import this name: the standard library has it, and nothing else does."""
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
    """Whether the layer of the function's packages has a module of this name."""
    return _has_module(PACKAGES, name)


def _has_module(folder: str, name: str) -> bool:
    """Whether there is a module of this name below `folder`: its source, its package, or a compiled one."""
    place, _, leaf = (folder + name.replace(".", "/")).rpartition("/")
    try:
        entries = os.listdir(place)
    except OSError:
        return False
    if leaf not in entries and not any(
        entry.partition(".")[0] == leaf and entry.endswith((".py", ".so")) for entry in entries
    ):
        return False
    return is_straight(folder, place)
