"""How the first process becomes the interpreter that is held for forking, at its start and when it is to be another one.

The rule: what is passed on is in one memory file, read once, and nothing that a run could have written or chosen freely is read
on the way. The held interpreter starts with the command line of a run, and with those variables of its environment by which
Python decides what no program can change later (encodings, buffering, flags), each with one of few known values. Home,
time zone and all other variables are the run's own, and are put in place in the child that runs it.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH112, PTH100, PTH116, PTH118, PTH120, PTH122, PTH123, PTH208, S606
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import marshal
import os
import stat
import sys

from nanogrid_warm import places

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Mapping, Sequence
    from types import CodeType
    from typing import Any, NoReturn

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOT = os.path.join(HERE, "boot")
PACKAGE = "nanogrid_warm"
STATE = "NANOGRID_RUNNER"
"""Names the descriptor of the memory file; gone from the environment before anything else runs."""

SPECIAL = ("LANG",)
SPECIAL_PREFIXES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "OPENSSL_", "LOCPATH", "NLSPATH", "GCONV")
"""Variables that an interpreter, or a library under it, reads once at its start."""

OF_THE_RUN = ("HOME", "TZ")
"""Variables that are never set for the first process: they lead to files."""

FILE_VARIABLES = ("PYTHONHOME", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "LD_PRELOAD", "LD_AUDIT", "OPENSSL_CONF")
"""Beside those that end in PATH, special variables that name files or folders."""

ANY_TEXT = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
"""Python asks only whether they are empty."""

CODECS = ("utf-8", "utf8", "ascii", "us-ascii", "latin-1", "latin1", "iso-8859-1", "iso8859-1", "cp1252")
HANDLERS = ("strict", "ignore", "replace", "backslashreplace", "surrogateescape", "xmlcharrefreplace", "namereplace")
VALUES = {
    "PYTHONUTF8": ("0", "1"),
    "PYTHONOPTIMIZE": ("0", "1", "2"),
    "PYTHONIOENCODING": (*CODECS, *(f"{codec}:{handler}" for codec in CODECS for handler in HANDLERS)),
}
"""Variables that a run may have the held interpreter started with, and their values."""

SEED_DIGITS = 10
LOCALE_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME")
CHARSETS = ("UTF-8", "utf8", "UTF8", "utf-8", "ISO-8859-1", "ISO-8859-15", "iso88591", "iso885915")

STREAMS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFIFO)
"""What a run's standard streams are: the payload's file, and two pipes."""

STREAM_KINDS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK)


def as_bytes(text: str) -> bytes:
    """As the system has it. Not by `os.fsencode`: how that does it is for the held interpreter's own run to decide."""
    return text.encode("utf-8", "surrogateescape")


def environment() -> dict[str, str]:
    """This process's environment, as the host would have written it."""
    return as_texts(os.environ._data)


def as_texts(variables: Mapping[bytes, bytes]) -> dict[str, str]:
    """Variables as the host would have written them."""
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in variables.items()
    }


def enter(folder: str, uid: int) -> None:
    """Make `folder`, which only `uid` may enter, the working directory."""
    os.seteuid(uid)
    try:
        os.chdir(folder)
    finally:
        os.seteuid(0)


def connect(path: str) -> int:
    """Connect to the host; the descriptor."""
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    # The socket is its maker's alone, and root in here may not pass over that: the worker may be another user.
    os.seteuid(os.stat(path).st_uid)
    try:
        connection.connect(path)
    finally:
        os.seteuid(0)
    return connection.detach()


def special(env: Mapping[str, str]) -> dict[str, str]:
    """What of an environment is fixed when an interpreter starts."""
    return {
        name: value
        for name, value in env.items()
        if (name in SPECIAL or name.startswith(SPECIAL_PREFIXES)) and (name, value) != ("PYTHONPATH", places.PACKAGES)
    }


def held_as(env: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str] | None:
    """The special variables with which the held interpreter is to start for runs with the environment `env`.

    `own` is the container's own environment, which its image decides. None where no such interpreter may be held: a variable has
    a value that is neither the container's own nor one of a few.
    """
    of_container = special(own)
    wanted = {}
    for name, value in special(env).items():
        if of_container.get(name) == value:
            wanted[name] = value
        elif name in ANY_TEXT:
            if value:
                wanted[name] = "1"
        elif (
            value in VALUES.get(name, ())
            or (name in LOCALE_VARIABLES and is_locale(value))
            or (name == "PYTHONHASHSEED" and is_seed(value))
        ):
            wanted[name] = value
        else:
            return None
    return wanted


def is_seed(value: str) -> bool:
    """Whether it is what Python takes for a seed."""
    return value == "random" or (len(value) <= SEED_DIGITS and value.isascii() and value.isdigit())


def is_locale(value: str) -> bool:
    """Whether it is a locale's name by its looks, and as short as those are."""
    if value in ("", "C", "POSIX", "C.UTF-8", "C.utf8"):
        return True
    language, _, charset = value.partition(".")
    tongue, _, country = language.partition("_")
    return (
        len(tongue) in (2, 3)
        and len(country) == 2
        and tongue.isascii()
        and country.isascii()
        and tongue.isalpha()
        and country.isalpha()
        and tongue.islower()
        and country.isupper()
        and (charset in CHARSETS or language == value)
    )


def safe_special(own: Mapping[str, str]) -> dict[str, str]:
    """Those of the container's own special variables that lead to no place that a run can write to."""
    return {name: value for name, value in special(own).items() if _leads_beyond_runs(name, value)}


def _leads_beyond_runs(name: str, value: str) -> bool:
    if name in FILE_VARIABLES or name.endswith("PATH"):
        return all(map(places.is_beyond_runs, value.replace(" ", ":").split(":")))
    return not any(place in value for place in places.WRITABLE)


def become(state: dict[str, Any]) -> NoReturn:
    """Replace this process by `state["command"]`, held. Returns never.

    The working directory is the run's, because Python makes the script's path of it; nothing may be left in there.
    """
    program = interpreter(state["command"][0], state["env"]) or sys.executable
    environment = {name: value for name, value in state["env"].items() if name not in OF_THE_RUN}
    for name in special(environment):
        del environment[name]
    environment.update(state["special"])
    environment["HOME"] = places.NOWHERE
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = BOOT if path is None else BOOT + os.pathsep + path
    enter(places.WORKSPACE, state["uid"])
    _provide_streams(state["kinds"])
    memory = os.memfd_create("state", 0)
    with open(memory, "wb", closefd=False) as file:
        marshal.dump(_programs(), file)
        marshal.dump(state, file, 2)
    os.lseek(memory, 0, os.SEEK_SET)
    environment[STATE] = str(memory)
    os.set_inheritable(state["control"], True)
    os.execve(
        as_bytes(program),
        list(map(as_bytes, state["command"])),
        {as_bytes(name): as_bytes(value) for name, value in environment.items()},
    )


def _programs() -> dict[str, tuple[str, CodeType]]:
    """The code of our modules, by name, with where it came from: compiled here, because what a compiler leaves behind is in the way.

    Between it the held interpreter's own things would lie far apart, and each run has to have its own copy of every page on which
    it counts a reference. Assertions and docstrings would only lie there too.
    """
    folder = os.path.join(HERE, PACKAGE)
    programs = {}
    for name in sorted(os.listdir(folder)):
        module, extension = os.path.splitext(name)
        if extension == ".py":
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                code = compile(file.read(), path, "exec", dont_inherit=True, optimize=2)
            programs[PACKAGE if module == "__init__" else f"{PACKAGE}.{module}"] = (path, code)
    return programs


def interpreter(name: str, env: dict[str, str]) -> str | None:
    """The path of a program where it is this very interpreter by some name; None for any other, and for none.

    The first process becomes nothing else, whatever a request names.
    """
    program = find(name, env)
    if program is None or not places.is_beyond_runs(program):
        return None
    return program if os.path.realpath(as_bytes(program)) == os.path.realpath(b"/proc/self/exe") else None


def find(name: str, env: dict[str, str]) -> str | None:
    """The path of a program, as the shell would find it; None where there is none."""
    if "/" in name:
        return name
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name)
        if os.access(as_bytes(path), os.X_OK) and not os.path.isdir(as_bytes(path)):
            return path
    return None


def _provide_streams(kinds: Sequence[int]) -> None:
    """Streams of the kinds that a run gets, so that the interpreter makes its own for them."""
    for stream, kind in enumerate(kinds):
        if stat.S_IFMT(os.fstat(stream).st_mode) == kind:
            continue
        if kind == stat.S_IFREG:
            made = [os.memfd_create("stream", 0)]
        elif kind == stat.S_IFIFO:
            made = list(os.pipe())
        else:
            made = [os.open(os.devnull, os.O_RDWR)]
        os.dup2(made[-1], stream)
        for descriptor in made:
            os.close(descriptor)
