"""How the first process becomes the interpreter that is held for forking, at its start and when it is to be another one.

The rule: what is passed on is in one memory file, read once. The held interpreter starts with the command line and the
environment of a run, because Python decides by them what no program can change later: locale, encodings, buffering, flags.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH112, PTH100, PTH116, PTH118, PTH120, S606
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import marshal
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOT = os.path.join(HERE, "boot")
STATE = "NANOGRID_RUNNER"
"""Names the descriptor of the memory file; gone from the environment before anything else runs."""

SPECIAL_PREFIXES = (
    "PYTHON",
    "LD_",
    "MALLOC_",
    "GLIBC_",
    "LC_",
    "LANG",
    "TZ",
    "OPENSSL_",
    "HOME",
    "LOCPATH",
    "NLSPATH",
    "GCONV",
)
"""Variables that an interpreter, or a library under it, reads once at its start."""

HARMLESS = (
    "PYTHONUNBUFFERED",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
    "PYTHONHASHSEED",
    "PYTHONOPTIMIZE",
)
"""Variables of a function that may be set for the first process too: they load no code and name no file."""

STREAMS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFIFO)
"""What a run's standard streams are: the payload's file, and two pipes."""

PACKAGES = "/nanogrid/packages"


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
        if name.startswith(SPECIAL_PREFIXES) and (name, value) != ("PYTHONPATH", PACKAGES)
    }


def may_hold(env: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether the first process may be started with these special variables, where `env` are the container's own."""
    own = special(env)
    return all(
        own.get(name) == value
        or name in HARMLESS
        or (name.startswith(("LC_", "LANG", "TZ")) and all(letter.isalnum() or letter in "_.@+-:/" for letter in value))
        for name, value in wanted.items()
    )


def become(state: dict[str, Any]) -> NoReturn:
    """Replace this process by `state["command"]`, held. Returns never."""
    program = interpreter(state["command"][0], state["env"]) or sys.executable
    environment = {name: value for name, value in state["env"].items() if not name.startswith(SPECIAL_PREFIXES)}
    environment.update(state["special"])
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = BOOT if path is None else BOOT + os.pathsep + path
    _provide_streams(state["kinds"])
    memory = os.memfd_create("state", 0)
    os.write(memory, marshal.dumps(state, 2))
    environment[STATE] = str(memory)
    os.set_inheritable(state["control"], True)
    os.execve(program, state["command"], environment)


def interpreter(name: str, env: dict[str, str]) -> str | None:
    """The path of a program where it is this very interpreter by some name; None for any other, and for none.

    The first process becomes nothing else, whatever a request names.
    """
    program = find(name, env)
    same = program is not None and os.path.realpath(program) == os.path.realpath("/proc/self/exe")
    return program if same else None


def find(name: str, env: dict[str, str]) -> str | None:
    """The path of a program, as the shell would find it; None where there is none."""
    if "/" in name:
        return name
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
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
