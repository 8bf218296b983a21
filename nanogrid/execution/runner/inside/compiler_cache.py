"""A compiler cache in front of gcc: a compile that has run in this container before is answered from memory.

The rule: the real compiler runs, with the caller's exact arguments and environment, unless everything that it would read is known to be
unchanged. Only successes are kept, with their output, including warnings. The cache belongs to the function's user in a container
that serves one code hash. The files in `bin/`, which have the compilers' names, call it.
Python >= 3.9, no slow imports: the start of the interpreter is most of the cost of a hit.
"""

# pathlib and contextlib take longer to import than a whole hit may take.
# ruff: noqa: PTH108, PTH109, PTH112, PTH116, PTH118, PTH123, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes longer to import
import os
import sys
from _blake2 import blake2b
from stat import S_ISREG
from time import clock_gettime_ns

from .compiler_command import Command, parse
from .compiler_inputs import Fact, Root, UnclearError, changed_at_ns, digest, read_regular
from .compiler_store import Store

TYPE_CHECKING = False  # `typing` takes long to import
if TYPE_CHECKING:
    from types import ModuleType

WRAPPERS = "/nanogrid/runner/bin"
CACHE = "/nanogrid/compiler-cache"

_REFUSED = [
    "COMPILER_PATH",
    "DEPENDENCIES_OUTPUT",
    "GCC_COMPARE_DEBUG",
    "GCC_EXEC_PREFIX",
    "GNUTARGET",
    "LDEMULATION",
    "LD_AUDIT",
    "LD_PRELOAD",
    "SUNPRO_DEPENDENCIES",
]
_KEYED = (
    "CPATH",
    "CPLUS_INCLUDE_PATH",
    "C_INCLUDE_PATH",
    "COLUMNS",
    "EXPERIMENTAL_",
    "LANG",
    "LIBRARY_PATH",
    "OBJC",
    "PATH",
    "PWD",
    "SOURCE_DATE_EPOCH",
    "TERM",
    "COLLECT_",
    "GCC_",
    "LC_",
    "LD_",
)
# The clock that stamps files. It ticks coarsely, and `time` has no name for it.
_CLOCK_REALTIME_COARSE = 5
_TROUBLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    EOFError,
    MemoryError,
    RecursionError,
    UnclearError,
)


def main() -> None:
    """Run the compiler that the arguments name, or repeat what it did for the same call before.

    `sys.argv`: "-c", the caller's LC_CTYPE ("=" and its value; empty: not set), the compiler's name, its arguments.
    """
    locale, name, *arguments = sys.argv[1:]
    environment = dict(os.environ)
    environment.pop("LC_CTYPE", None)
    if locale:
        environment["LC_CTYPE"] = locale[1:]
    if "PATH" in environment:
        folders = environment["PATH"].split(":")
        environment["PATH"] = ":".join(path for path in folders if os.path.normpath(path or ".") != WRAPPERS)
    call = Call(name, arguments, environment)
    try:
        done = call.answer()
    except _TROUBLE:
        done = False
    if not done:
        call.run_real()
    os._exit(0)  # nothing is open or buffered, and this is faster


class Call:
    """One call of a compiler."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        self._name = name
        self._arguments = arguments
        self._environment = environment
        self._store = Store(CACHE)
        self._real = _find(name, environment.get("PATH", ""))

    def run_real(self) -> None:
        """Become the real compiler."""
        if not self._real:
            os.write(2, os.fsencode(f"{self._name}: command not found\n"))
            os._exit(127)
        # The interpreter ignores these signals, and the next program would inherit that.
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
        try:
            os.execve(self._real, [self._name, *self._arguments], self._environment)  # noqa: S606  # this is the point
        except OSError as error:
            os.write(2, os.fsencode(f"{self._name}: {error.strerror}\n"))
            os._exit(126)

    def answer(self) -> bool:
        """Repeat the kept output, or compile and keep it. Returns False if nothing was done and the real compiler must run."""
        command = parse(self._arguments)
        if command is None or not self._real or not self._environment_is_plain() or not self._store.usable():
            return False
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            root = Root(file.read())
        if not self._tools_are_fixed(root) or not all(map(_replaceable, command.outputs)):
            return False
        key = self._key()
        return self._from_store(key, command) or self._compile(key, command, root)

    def _environment_is_plain(self) -> bool:
        return not os.isatty(2) and not any(name in self._environment for name in _REFUSED)

    def _tools_are_fixed(self, root: Root) -> bool:
        """Return whether compiler, assembler and linker are the image's own. gcc finds the last two by PATH."""
        path = self._environment.get("PATH", "")
        tools = [self._real, _find("as", path), _find("ld", path)]
        libraries = [folder for folder in self._environment.get("LIBRARY_PATH", "").split(":") if folder]
        is_clang = "clang" in os.path.realpath(self._real)
        return root.read_only and not is_clang and all(tool and root.holds(tool) for tool in tools + libraries)

    def _key(self) -> str:
        status = os.stat(self._real)
        identity = (os.path.realpath(self._real), status.st_mtime_ns, status.st_size, status.st_ino)
        environment = sorted(item for item in self._environment.items() if item[0].startswith(_KEYED))
        text = repr((identity, self._name, self._arguments, os.getcwd(), environment))
        return blake2b(os.fsencode(text), digest_size=20).hexdigest()

    def _from_store(self, key: str, command: Command) -> bool:
        facts = self._store.get(key)
        if not isinstance(facts, tuple):
            return False
        try:
            kept = self._store.get(digest(key, facts))
        except (OSError, UnclearError):
            return False
        if not isinstance(kept, tuple):
            return False
        warnings, contents = kept
        for path, (content, executable) in zip(command.outputs, contents):  # noqa: B905  # new in Python 3.10
            _write(path, content, executable=executable, replace=path in command.binaries)
        if warnings:
            _write_all(2, warnings)
        return True

    def _compile(self, key: str, command: Command, root: Root) -> bool:
        compiler_run = _import_slow_parts()

        lists = compiler_run.Lists()
        environment = self._environment if command.listing else lists.environment(self._environment)
        started_ns = clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        status, warnings = compiler_run.compile_once(self._real, [self._name, *self._arguments], environment)
        # The compile is done, successful or not: from here on nothing may start another one.
        try:
            if status == 0 and warnings is not None:
                if command.listing:
                    compiler_run.list_only(
                        self._real, [self._name, *command.listing], lists.environment(self._environment)
                    )
                self._keep(key, command, lists.facts(command, root, self._environment), warnings, started_ns)
        except _TROUBLE:
            pass
        compiler_run.end_as(status)
        return True

    def _keep(self, key: str, command: Command, facts: tuple[Fact, ...], warnings: bytes, started_ns: int) -> None:
        outputs = [(read_regular(path), bool(os.stat(path).st_mode & 0o100)) for path in command.outputs]
        state = digest(key, facts)
        # After the digest: any change of a file before it shows in the file's times.
        if changed_at_ns(facts) < started_ns:
            self._store.put(state, (warnings, outputs))
            self._store.put(key, facts)


def _import_slow_parts() -> ModuleType:
    """Import what only a miss needs. The image has compiled copies of Python's own modules, so they need none in the cache."""
    own, sys.pycache_prefix = sys.pycache_prefix, None
    import re  # noqa: F401  # for the next import

    sys.pycache_prefix = own
    from . import compiler_run

    return compiler_run


def _find(name: str, path: str) -> str:
    """Return the file that a shell would run for a name; empty if there is none."""
    for folder in path.split(":"):
        file = os.path.join(folder or ".", name)
        if os.access(file, os.X_OK) and not os.path.isdir(file):
            return file
    return ""


def _replaceable(path: str) -> bool:
    """Return whether an output can simply be created, or replaces a file of this user."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    return S_ISREG(status.st_mode) and status.st_size > 0 and status.st_uid == os.geteuid()


def _write(path: str, content: bytes, *, executable: bool, replace: bool) -> None:
    """Write an output as the compiler does: binaries replace the file, texts overwrite it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if replace else os.O_TRUNC)
    if replace:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    descriptor = os.open(path, flags, 0o777 if executable else 0o666)
    try:
        _write_all(descriptor, content)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
