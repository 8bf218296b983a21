"""How the first process becomes the held interpreter: once at its start, and again when runs need another one.

The rule: everything that survives `exec` is a `State` in one memory file, which is read once. Nothing that a run could have written or
chosen freely is read on the way. The held interpreter starts with the command line of a run, and with its startup variables: those
that fix what no program can change later (encodings, buffering, flags). Each has one of few known values. Home, time zone and
all other variables belong to one run, and the child that runs it sets them.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH112, PTH100, PTH116, PTH118, PTH120, PTH122, PTH123, PTH208, S606
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import marshal
import os
import stat
import sys

from nanogrid_warm import paths

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Mapping, Sequence
    from types import CodeType
    from typing import Any, NoReturn

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOT = os.path.join(HERE, "boot")
PACKAGE = "nanogrid_warm"
STATE = "NANOGRID_RUNNER"
"""The variable with the memory file's descriptor. `boot/sitecustomize.py` removes it before anything else runs."""

STARTUP_NAMES = ("LANG",)
STARTUP_PREFIXES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "OPENSSL_", "LOCPATH", "NLSPATH", "GCONV")
"""Startup variables: an interpreter, or a library under it, reads them once at its start."""

RUN_VARIABLES = ("HOME", "TZ")
"""Variables that the first process never has, because they lead to files."""

FILE_VARIABLES = ("PYTHONHOME", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "LD_PRELOAD", "LD_AUDIT", "OPENSSL_CONF")
"""Startup variables that name files or folders, besides those whose names end in PATH."""

FLAG_VARIABLES = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
"""Python checks only whether they are empty."""

CODECS = ("utf-8", "utf8", "ascii", "us-ascii", "latin-1", "latin1", "iso-8859-1", "iso8859-1", "cp1252")
ERROR_HANDLERS = (
    "strict",
    "ignore",
    "replace",
    "backslashreplace",
    "surrogateescape",
    "xmlcharrefreplace",
    "namereplace",
)
ALLOWED_VALUES = {
    "PYTHONUTF8": ("0", "1"),
    "PYTHONOPTIMIZE": ("0", "1", "2"),
}
"""Startup variables that a run may choose for the held interpreter, and their values. More are checked by functions below."""

SEED_DIGITS = 10
LOCALE_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME")
CHARSETS = ("UTF-8", "utf8", "UTF8", "utf-8", "ISO-8859-1", "ISO-8859-15", "iso88591", "iso885915")

RUN_STREAMS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFIFO)
"""The file types of a run's standard streams: the payload's file, and two pipes."""

STREAM_TYPES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK)


class State:
    """Everything that the first process keeps across `exec`. `exec_interpreter` writes its fields to a memory file, `boot/sitecustomize.py`
    reads that file, and `serve.prepare` makes a new state of the fields.

    To add a field: add it as a parameter here, describe it, and set it in `__main__.py`, or in `initial_fields` if runs change it. A state
    with a missing or an unknown field raises TypeError on both sides of the `exec`. Values must be types that `marshal` can write.
    """

    def __init__(
        self,
        *,
        command: Sequence[str],
        environment: dict[str, str],
        faithful: bool,
        filtered: bool,
        first_command: Sequence[str],
        gid: int,
        host_descriptor: int,
        learn_imports: bool,
        own_network: bool,
        own_sources: list[str],
        reexecs: int,
        rehearsed: bool,
        scan: tuple[bool, bool] | None,
        sockets: int,
        standard_modules: list[str],
        startup_variables: dict[str, str],
        stream_types: Sequence[int],
        uid: int,
    ) -> None:
        self.command = command
        """The command line to hold: `python` and a script. Runs with another command cannot use the held interpreter."""
        self.environment = environment
        """The container's own environment, which its image decides. It never changes."""
        self.faithful = faithful
        """Whether all of the image's startup variables are safe. If not, the held interpreter lacks some, and runs execute their command."""
        self.filtered = filtered
        """Whether `syscalls.refuse` is in force, so that a workspace may be kept between runs. It never changes."""
        self.first_command = first_command
        """The command that the container was created with."""
        self.gid = gid
        """The group of the function's user."""
        self.host_descriptor = host_descriptor
        """The descriptor of the connection to the host."""
        self.learn_imports = learn_imports
        """Whether runs may teach which modules to import in advance. It never changes: it is the deployment's setting."""
        self.own_network = own_network
        """Whether the network namespace is the container's own, so that connections left in it can be checked."""
        self.own_sources = own_sources
        """Paths of the function's own modules to compile in advance."""
        self.reexecs = reexecs
        """How often another interpreter has been started. With 0 the runner sends `hello`; at a limit it starts no other one."""
        self.rehearsed = rehearsed
        """Whether to skip the rehearsal, which finds the pages that a run writes."""
        self.scan = scan
        """What the function's sources contain, as the arguments of `SourceScan`; None if they have not been read."""
        self.sockets = sockets
        """How many sockets the container had before its first spare. It never changes: a run may leave some for a moment."""
        self.standard_modules = standard_modules
        """Modules of the standard library to import and hide, in this order."""
        self.startup_variables = startup_variables
        """The startup variables to start the interpreter with, in place of the container's own."""
        self.stream_types = stream_types
        """The file types of the standard streams to start the interpreter with."""
        self.uid = uid
        """The function's user."""

    def replace(self, **changes: Any) -> State:
        """Return a copy with some fields changed."""
        return State(**{**vars(self), **changes})

    def for_new_code(self) -> State:
        """Return the state for the same container with other code, of which nothing is known."""
        return self.replace(**initial_fields(self.first_command, self.environment), reexecs=1, rehearsed=True)


def initial_fields(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a `State` that depend on runs, as they are before the first run."""
    return {
        "command": command,
        "startup_variables": safe_startup_variables(environment),
        "stream_types": RUN_STREAMS,
        "standard_modules": [],
        "own_sources": [],
        "scan": None,
    }


def as_bytes(text: str) -> bytes:
    """Encode text for the system. Unlike `os.fsencode` this does not depend on the held interpreter's settings."""
    return text.encode("utf-8", "surrogateescape")


def environment() -> dict[str, str]:
    """Return this process's environment, as the host would have written it."""
    return as_texts(os.environ._data)


def as_texts(variables: Mapping[bytes, bytes]) -> dict[str, str]:
    """Decode variables, as the host would have written them."""
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in variables.items()
    }


def _enter(folder: str, uid: int) -> None:
    """Make `folder`, which only `uid` may enter, the working directory."""
    os.seteuid(uid)
    try:
        os.chdir(folder)
    finally:
        os.seteuid(0)


def connect_to_host(path: str) -> int:
    """Connect to the host and return the descriptor."""
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    # Only its owner may connect to the socket, and root in here may not override that: the worker may be another user.
    os.seteuid(os.stat(path).st_uid)
    try:
        connection.connect(path)
    finally:
        os.seteuid(0)
    return connection.detach()


def startup_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return the startup variables of an environment."""
    return {
        name: value
        for name, value in env.items()
        if (name in STARTUP_NAMES or name.startswith(STARTUP_PREFIXES))
        and (name, value) != ("PYTHONPATH", paths.PACKAGES)
    }


def startup_variables_for(env: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str] | None:
    """Return the startup variables that the held interpreter needs for runs with the environment `env`.

    `own` is the container's own environment, which its image decides. Returns None if no such interpreter may be held, because a
    variable has a value that is neither the container's own nor one of a few.
    """
    of_container = startup_variables(own)
    needed = {}
    for name, value in startup_variables(env).items():
        if of_container.get(name) == value:
            needed[name] = value
        elif name in FLAG_VARIABLES:
            if value:
                needed[name] = "1"
        elif (
            value in ALLOWED_VALUES.get(name, ())
            or (name in LOCALE_VARIABLES and is_locale(value))
            or (name == "PYTHONHASHSEED" and is_seed(value))
            or (name == "PYTHONIOENCODING" and is_encoding(value))
        ):
            needed[name] = value
        else:
            return None
    return needed


def is_seed(value: str) -> bool:
    """Return whether Python accepts this as a hash seed."""
    return value == "random" or (len(value) <= SEED_DIGITS and value.isascii() and value.isdigit())


def is_encoding(value: str) -> bool:
    """Return whether this is one of a few codecs, alone or with an error handler."""
    codec, colon, errors = value.partition(":")
    return codec in CODECS and (not colon or errors in ERROR_HANDLERS)


def is_locale(value: str) -> bool:
    """Return whether this looks like a locale's name, and is as short as one."""
    if value in ("", "C", "POSIX", "C.UTF-8", "C.utf8"):
        return True
    locale, _, charset = value.partition(".")
    language, _, country = locale.partition("_")
    return (
        len(language) in (2, 3)
        and len(country) == 2
        and language.isascii()
        and country.isascii()
        and language.isalpha()
        and country.isalpha()
        and language.islower()
        and country.isupper()
        and (charset in CHARSETS or locale == value)
    )


def safe_startup_variables(own: Mapping[str, str]) -> dict[str, str]:
    """Return the container's own startup variables that lead to no place that a run can write to."""
    return {name: value for name, value in startup_variables(own).items() if _is_safe(name, value)}


def _is_safe(name: str, value: str) -> bool:
    if name in FILE_VARIABLES or name.endswith("PATH"):
        return all(map(paths.is_outside_writable, value.replace(" ", ":").split(":")))
    return not any(place in value for place in paths.WRITABLE)


def exec_interpreter(state: State) -> NoReturn:
    """Replace this process by `state.command`, which `boot/sitecustomize.py` holds before it opens its script.

    The working directory is the workspace, because Python derives the script's path from it. The workspace must be empty.
    """
    program = interpreter_path(state.command[0], state.environment) or sys.executable
    env = {name: value for name, value in state.environment.items() if name not in RUN_VARIABLES}
    for name in startup_variables(env):
        del env[name]
    env.update(state.startup_variables)
    env["HOME"] = paths.NO_HOME
    path = env.get("PYTHONPATH")
    env["PYTHONPATH"] = BOOT if path is None else BOOT + os.pathsep + path
    _enter(paths.WORKSPACE, state.uid)
    _open_streams(state.stream_types)
    env[STATE] = str(_write_memory_file(state))
    os.set_inheritable(state.host_descriptor, True)
    os.execve(
        as_bytes(program),
        list(map(as_bytes, state.command)),
        {as_bytes(name): as_bytes(value) for name, value in env.items()},
    )


def _write_memory_file(state: State) -> int:
    """Write our modules and the state's fields, in the order in which `boot/sitecustomize.py` reads them. Returns the descriptor."""
    memory = os.memfd_create("state", 0)
    with open(memory, "wb", closefd=False) as file:
        marshal.dump(_programs(), file)
        marshal.dump(vars(state), file, 2)
    os.lseek(memory, 0, os.SEEK_SET)
    return memory


def _programs() -> dict[str, tuple[str, CodeType]]:
    """Return the path and the code of each of our modules, by name.

    They are compiled here, before `exec`, because a compiler leaves memory behind. In the held interpreter that memory would lie between
    its own objects and spread them, and each run must copy every page on which it counts a reference. Assertions and docstrings are
    left out for the same reason.
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


def interpreter_path(name: str, env: dict[str, str]) -> str | None:
    """Return the path of a program if it is this very interpreter by some name; None for any other program, and for none.

    The first process executes nothing else, whatever a request names.
    """
    program = find_program(name, env)
    if program is None or not paths.is_outside_writable(program):
        return None
    return program if os.path.realpath(as_bytes(program)) == os.path.realpath(b"/proc/self/exe") else None


def find_program(name: str, env: dict[str, str]) -> str | None:
    """Return the path of a program, as the shell would find it; None if there is none."""
    if "/" in name:
        return name
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name)
        if os.access(as_bytes(path), os.X_OK) and not os.path.isdir(as_bytes(path)):
            return path
    return None


def _open_streams(stream_types: Sequence[int]) -> None:
    """Open standard streams of the file types that a run gets, so that the interpreter creates matching Python streams."""
    for stream, stream_type in enumerate(stream_types):
        if stat.S_IFMT(os.fstat(stream).st_mode) == stream_type:
            continue
        if stream_type == stat.S_IFREG:
            opened = [os.memfd_create("stream", 0)]
        elif stream_type == stat.S_IFIFO:
            opened = list(os.pipe())
        else:
            opened = [os.open(os.devnull, os.O_RDWR)]
        os.dup2(opened[-1], stream)
        for descriptor in opened:
            os.close(descriptor)
