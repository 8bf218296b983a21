"""The function's own packages, imported in a spare before its request.

The rule: packages are the function's code, so they never run in the first process. They run in a spare: in a workspace with only the code,
with the container's own environment, and without a connection to anyone. If the import has side effects, packages are not imported in
advance any more. A run gets the result only if its packages could not have read anything that differs in its own environment.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH109, PTH112, PTH118, PTH119, PTH123, PTH208
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _signal
import _thread
import _warnings
import builtins
import gc
import os
import sys
import time

from nanogrid_warm import import_report, import_watch, paths, reexec, vendored
from nanogrid_warm.imports import is_changed

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Iterable, Iterator
    from typing import Any

    from nanogrid_warm.imports import Imports

OWN_PREFIX = "NANOGRID_"
HANDLER_VARIABLES = frozenset(
    (
        *("_HANDLER", "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "AWS_REGION", "LAMBDA_TASK_ROOT"),
        *(f"AWS_LAMBDA_FUNCTION_{name}" for name in ("NAME", "VERSION", "MEMORY_SIZE")),
        *(f"AWS_LAMBDA_{name}" for name in ("INITIALIZATION_TYPE", "LOG_GROUP_NAME", "LOG_STREAM_NAME")),
    )
)
"""Variables that every handler has. Packages may read them. The image's own libraries do not, and are not searched for them."""

START_MODULES = ("sitecustomize", "usercustomize")
LIMIT_BYTES = 16 << 20
HANDLER = 2
"""The position of the handler's name in a command."""


class Packages:
    """Which packages to import in advance, and what they could have read of the environment."""

    def __init__(self) -> None:
        self.prologue: tuple[str, ...] = ()
        """The modules that the program imports in its prologue."""
        self.names: tuple[str, ...] = ()
        """The same if packages are among them, else empty: what a spare imports in advance."""
        self._rejected: set[tuple[str, tuple[str, ...]]] = set()
        """Handlers and prologues that could not be imported without side effects."""
        self.handler = ""
        """The module of the handler that this prologue belongs to; "" for a script."""
        self.known_modules = ()
        self.loaded = False
        self.may_be_forked = False
        """Whether forks of the process that has imported them may share the import: nothing in it would be the same in all of them."""
        self.arguments: list[str] | None = None
        """The command line, if the packages have read it."""
        self.checked = False
        """Whether a spare has imported them and found no side effects. Later spares do not compare other modules again."""
        self.reads = EnvironmentReads()
        self.libraries: list[bytes] = []
        """The image's own libraries that the packages have loaded."""
        self.file = -1
        """A memory file with the words in compiled modules; -1 until a run needs them."""
        self.words: bytes | None = None
        """The same in a spare. A spare has closed the file: all spares share it, and a run could write to it."""

    def learn(self, report: import_report.ImportReport) -> bool:
        """Remember the prologue for the next spares. It is the same in each run. Returns whether it is new."""
        known = (report.handler, tuple(dict.fromkeys(report.prologue)))
        if not report.prologue or (self.prologue and self.handler == report.handler) or known in self._rejected:
            return False
        self.prologue = tuple(dict.fromkeys(report.prologue))
        self.handler = report.handler
        self.names = self.prologue if any(map(import_report.is_package, self.prologue)) else ()
        self.checked = False
        self.drop_words()
        return True

    def forget(self) -> None:
        """Import no packages in advance."""
        self.prologue = self.names = ()
        self.drop_words()

    def reject(self) -> None:
        """Import no packages in advance, and never these again: a spare could not import them without side effects."""
        self._rejected.add((self.handler, self.prologue))
        self.forget()

    def match_command(self, argv: list[str]) -> bool:
        """Return whether a run with this command has the known prologue, and its packages could not notice another command line."""
        return not self.loaded or (self.handler == handler_module(argv) and self.arguments in (None, argv[1:]))

    def drop_words(self) -> None:
        """Close the memory file, so that the words in compiled modules are collected again on demand."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def read_words(self) -> None:
        """Read the memory file in a spare, before any code of the function runs there."""
        if self.file >= 0:
            self.words = os.pread(self.file, LIMIT_BYTES, 0)
            self.drop_words()

    def fit_environment(self, env: dict[str, str], own: dict[str, str]) -> bool:
        """Return whether a run with this environment may use the packages that are imported here, and the interpreter as it is.

        `own` is the container's own environment, with which they were imported.
        """
        if self.loaded and not self._could_not_notice(env, own):
            return False
        if env.get("PYTHONPATH") != paths.PACKAGES:
            return True
        try:
            tops = {name.partition(".")[0] for name in os.listdir(paths.PACKAGES)}
        except OSError:
            return True
        return tops.isdisjoint(START_MODULES) and tops.isdisjoint(sys.modules)

    def needs_words(self, env: dict[str, str], own: dict[str, str]) -> bool:
        """Return whether a run like this one could use the packages if the words in compiled modules were known."""
        return self.loaded and self.words is None and self.reads.include_none_of(_different(env, own))

    def _could_not_notice(self, env: dict[str, str], own: dict[str, str]) -> bool:
        names = _different(env, own)
        if not self.reads.include_none_of(names):
            return False
        names = [name for name in names if not name.startswith(OWN_PREFIX)]
        if not names:
            return True
        words = self.words or b""
        # The end of a word counts too: a linker may store one string as the end of another.
        if not words or not all(_is_word(name) and name.encode() + b"\n" not in words for name in names):
            return False
        ends = [name.encode() + b"\0" for name in names if name not in HANDLER_VARIABLES]
        return not ends or not any(_contains_any(library, ends) for library in self.libraries)

    def insert_path(self, env: dict[str, str]) -> None:
        """Add the packages to `sys.path` where Python adds the folders in PYTHONPATH: after the script's folder, before its own library."""
        if env.get("PYTHONPATH") == paths.PACKAGES and paths.PACKAGES not in sys.path:
            sys.path.insert(0, paths.PACKAGES)

    def load(self, imports: Imports, own: dict[str, str], script: str) -> bool:
        """Import the packages in this process. Returns whether that had no side effects besides hidden modules.

        `own` is the environment that is set. Afterwards `may_be_forked` tells whether forks of this process may share the import.
        """
        if imports.shadowed(os.listdir(paths.WORKSPACE)):
            return True  # Python would find other modules than the hidden ones
        if os.path.isdir(paths.PACKAGES):
            sys.path.insert(0, paths.PACKAGES)
        _silence_streams()
        before, children, libraries = _process_state(), _ended_children(), _loaded_libraries()
        others = None if self.checked else _ModuleSnapshot({**sys.modules, **imports.hidden})
        arguments = WatchedArguments(sys.argv)
        watch = import_watch.ImportWatch()
        random_state = import_watch.state_of_random(imports.hidden)
        self.reads.start()
        sys.path.insert(0, paths.WORKSPACE)  # as the script's folder would be
        try:
            independent = self._import(imports, script, arguments, watch)
            sys.path.remove(paths.WORKSPACE)
            sys.path_importer_cache.pop(paths.WORKSPACE, None)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001  # the function's packages can raise anything
            return False
        finally:
            self.reads.stop()
        self.loaded = True
        if arguments.read:
            self.arguments = list(sys.argv)
        if _ended_children() != children:  # child processes have received the environment
            self.reads.all = True
        self.libraries = [
            path for path in _loaded_libraries() - libraries if not vendored.is_package_file(os.fsdecode(path))
        ]
        self.may_be_forked = (
            watch.is_unseen()
            and not watch.calls
            and random_state in (None, import_watch.state_of_random(imports.hidden))
            and not import_watch.unknown_generators(imports.hidden)
        )
        gc.freeze()
        return (
            independent
            and not os.fstat(1).st_size
            and sys.getrefcount(arguments) <= UNSHARED
            and (others is None or others.is_unchanged())
            and _has_no_threads()
            and _process_state() == before
            and os.environ._data == {reexec.as_bytes(name): reexec.as_bytes(value) for name, value in own.items()}
        )

    def _import(
        self, imports: Imports, script: str, arguments: WatchedArguments, watch: import_watch.ImportWatch
    ) -> bool:
        """Import the packages as the program will, in its own prologue. Raises what they raise.

        Returns whether no package has rebound a name in a package that the program imports before it: the program could have read the
        name in between.
        """
        main = vars(sys.modules["__main__"])
        main["__file__"] = script
        own, sys.argv = sys.argv, arguments
        seen: dict[str, tuple[Any, dict[str, Any]]] = {}
        watch.start()
        try:
            for _ in imports.replay(self.names, {"__name__": self.handler} if self.handler else main):
                if not self.checked:
                    seen.update(_new_packages(seen))
        finally:
            sys.argv = own
            del main["__file__"]
            modules = [vars(module) for module in sys.modules.values() if hasattr(module, "__dict__")]
            watch.stop([*modules, *(names for _, names in seen.values())])
        independent = not any(is_changed(*kept) for kept in seen.values())
        imports.hide_prologue(self.known_modules, self.names)
        return independent

    def write_words(self) -> None:
        """Write the words in all compiled modules into the memory file: the variables that the modules could read.

        Called in a one-shot child, as the function's user. If it fails, the file stays empty.
        """
        import mmap
        import re

        pattern = re.compile(rb"[A-Z_][A-Z0-9_]{2,}")
        words: set[bytes] = set()
        for path in _compiled_modules():
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size:
                    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                        words.update(pattern.findall(data))
        text = b"\n" + b"\n".join(words) + b"\n"
        if len(text) <= LIMIT_BYTES:
            os.pwrite(self.file, text, 0)


def _compiled_modules() -> Iterator[str]:
    """Yield the paths of all compiled files of the function's packages."""
    for root in (paths.PACKAGES, *vendored.roots()):
        for folder, _, names in os.walk(root):
            yield from (os.path.join(folder, name) for name in names if ".so" in name)
        if ".so" in os.path.basename(root):
            yield root


class WatchedArguments(list):  # type: ignore[type-arg]
    """A command line that remembers whether it was read."""

    read = False


def _watched(name: str) -> Any:
    own = getattr(list, name)

    def read(self: WatchedArguments, *arguments: Any) -> Any:
        self.read = True
        return own(self, *arguments)

    return read


for _name in (
    "__add__",
    "__contains__",
    "__eq__",
    "__getitem__",
    "__iter__",
    "__len__",
    "__mul__",
    "__ne__",
    "__repr__",
    "__reversed__",
    "copy",
    "count",
    "index",
    "pop",
):
    setattr(WatchedArguments, _name, _watched(_name))
UNSHARED = 2
"""The reference count of an object that only one variable refers to, as `sys.getrefcount` returns it."""


def handler_module(argv: list[str]) -> str:
    """Return the module of the handler that a command calls; "" for a script."""
    if argv[1:2] != [paths.CALL_HANDLER] or len(argv) == HANDLER:
        return ""
    return argv[HANDLER].replace("/", ".").rpartition(".")[0]


class EnvironmentReads:
    """The variables that were read through `os.environ`, or that all of them were."""

    def __init__(self) -> None:
        self.names: set[object] = set()
        self.all = False
        self._own: tuple[Any, Any] = (None, None)

    def start(self) -> None:
        """Watch from now on."""
        kind = type(os.environ)
        get, walk = self._own = kind.__getitem__, kind.__iter__

        def watched_get(environ: Any, key: Any) -> Any:
            self.names.add(os.fsdecode(key) if isinstance(key, bytes) else key)
            return get(environ, key)

        def watched_walk(environ: Any) -> Any:
            self.all = True
            return walk(environ)

        kind.__getitem__, kind.__iter__ = watched_get, watched_walk  # type: ignore[method-assign]

    def stop(self) -> None:
        """Stop watching."""
        kind = type(os.environ)
        kind.__getitem__, kind.__iter__ = self._own  # type: ignore[method-assign]

    def include_none_of(self, names: Iterable[str]) -> bool:
        """Return whether none of these was read. If all were read, our own names do not count: they differ in each run anyway."""
        if self.all:
            return all(name.startswith(OWN_PREFIX) and name not in self.names for name in names)
        return self.names.isdisjoint(names)


def _different(env: dict[str, str], own: dict[str, str]) -> list[str]:
    """Return the names of the variables that differ."""
    return [name for name in {**own, **env} if name != "PYTHONPATH" and env.get(name) != own.get(name)]


def _is_word(name: str) -> bool:
    """Return whether `write_words` would have found this name."""
    return (
        len(name) > 2
        and name.isascii()
        and name.isupper()
        and name.replace("_", "A").isalnum()
        and not name[0].isdigit()
    )


def _new_packages(known: Iterable[str]) -> Iterator[tuple[str, tuple[Any, dict[str, Any]]]]:
    """Yield the modules of packages that are not in `known`, each with its current names and values."""
    for name, module in list(sys.modules.items()):
        if name not in known and vendored.is_package_file(str(getattr(module, "__file__", ""))):
            yield name, (module, dict(vars(module)))


def _silence_streams() -> None:
    """Make a memory file of this process the standard streams, in place of those that it shares with the first process."""
    silent = os.memfd_create("silent", os.MFD_CLOEXEC)
    for stream in range(3):
        os.dup2(silent, stream)
    os.close(silent)


class _ModuleSnapshot:
    """The state of modules that are not the packages' own. If importing the packages changes them, every run would see that, even
    one that does not import these packages.
    """

    def __init__(self, modules: dict[str, Any]) -> None:
        self._modules = modules
        self._before = {
            id(module): (module, dict(vars(module))) for module in modules.values() if hasattr(module, "__dict__")
        }
        for _, names in list(self._before.values()):
            for value in names.values():
                if isinstance(value, type) and value.__flags__ & HEAP_TYPE:
                    self._before[id(value)] = value, dict(vars(value))
        self._settings_before = self._global_settings()

    def is_unchanged(self) -> bool:
        """Return whether all names that are not private have the same values, and the settings for the whole program too."""
        return self._settings_before == self._global_settings() and not any(
            _is_rebound(*kept) for kept in self._before.values()
        )

    def _global_settings(self) -> list[object]:
        logging, socket = map(self._modules.get, ("logging", "_socket"))
        return [
            logging and [logging.root.handlers[:], logging.root.level, logging.root.manager.disable],
            socket and socket.getdefaulttimeout(),
            [entry for entry in _warnings.filters if entry[1] is None and entry[2].__module__ == "builtins"],
        ]


def _is_rebound(owner: Any, before: dict[str, Any]) -> bool:
    """Return whether a name of a module or a class has another value than before."""
    names = vars(owner)
    for name in {**before, **names}:
        old, new = before.get(name, MISSING), names.get(name, MISSING)
        if old is new or (name.startswith("_") and not (isinstance(owner, type) and name[:2] == "__")):
            continue
        if type(old) is type(new) and isinstance(old, COMPARABLE) and old == new:  # an equal object
            continue
        fills_in = old is None and not callable(new)  # a cache that was empty
        on_demand = old is MISSING and "__getattr__" in before
        if not (fills_in or on_demand or (name[:2] == "__" and not callable(new))):
            return True
    return False


HEAP_TYPE = 1 << 9
"""The flag of classes that can be changed."""
MISSING = object()
COMPARABLE = (int, float, str, bytes, tuple)
STATUS_FIELDS = (
    b"Name:",
    b"Umask:",
    b"SigBlk:",
    b"SigIgn:",
    b"SigCgt:",
    b"ShdPnd:",
    b"Cap",
    b"NoNewPrivs:",
    b"Seccomp:",
)
LIBRARY_SIGNALS = 0b11 << 31
"""Signals 32 and 33, which glibc and musl use, as bits from 1. Many compiled packages start threads when they are imported."""
TIMERS = range(3)
THREAD_ENDS_MS = 20


def _process_state() -> list[object]:
    """Return what code can change in its process and in the interpreter as a whole, and which processes exist, for comparison."""
    with open("/proc/self/status", "rb") as status, open("/proc/self/limits", "rb") as limits:
        kernel = [_without_library_signals(line) for line in status if line.startswith(STATUS_FIELDS)]
        kernel += limits.readlines()
    return [
        kernel,
        [name for name in os.listdir("/proc") if name.isdigit()],
        _descriptors(),
        [_signal.getitimer(timer) for timer in TIMERS],
        [_signal.getsignal(number) for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGPIPE)],
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0),
        os.sched_getaffinity(0),
        os.getcwd(),
        os.getpgid(0),
        [list(sys.path), list(sys.meta_path), list(sys.path_hooks), list(sys.argv), sys.prefix, sys.exec_prefix],
        [sys.excepthook, sys.displayhook, sys.unraisablehook, sys.gettrace(), sys.getprofile()],
        [sys.stdin, sys.stdout, sys.stderr],
        [sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold(), gc.get_debug()],
        [*vars(builtins).items()],
    ]


def _without_library_signals(line: bytes) -> bytes:
    """Return a line of the process's status. Caught signals exclude those that the C library catches from its first thread on."""
    name, _, mask = line.partition(b":")
    return line if name != b"SigCgt" else b"%x" % (int(mask, 16) & ~LIBRARY_SIGNALS)


def _has_no_threads() -> bool:
    """Return whether all threads have ended. A joined thread may need another moment."""
    for _ in range(THREAD_ENDS_MS):
        if not _thread._count():
            return True
        time.sleep(0.001)
    return False


def _ended_children() -> list[bytes]:
    """Return the page faults of ended child processes. A child that has done anything has touched pages."""
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return [fields[8], fields[10]]


def _loaded_libraries() -> set[bytes]:
    """Return the files with code of this process."""
    with open("/proc/self/maps", "rb") as maps:
        lines = [line.rstrip(b"\n").split(None, 5) for line in maps]
    return {line[5] for line in lines if len(line) > 5 and b"x" in line[1] and line[5].startswith(b"/")}


def _contains_any(path: bytes, texts: list[bytes]) -> bool:
    """Return whether a file contains any of these texts, or cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    data = os.pread(file, os.fstat(file).st_size, 0)
    os.close(file)
    return any(text in data for text in texts)


def _descriptors() -> list[tuple[int, int, int]]:
    """Return the open descriptors, each with the device and the inode of its file."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:  # the descriptor of this listing
            continue
        found.append((int(name), status.st_dev, status.st_ino))
    return found
