"""The function's own packages, imported in a spare before its request.

The rule: this is the function's code, so it never runs in the first process; and it runs in a workspace of its own, with the
code that every run has, with the container's own environment and no connection to anybody, or it is not imported beforehand
again. A run gets what came of it only where its packages could not have read anything that is different in its own environment.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH109, PTH118, PTH123, PTH208
# The programs find each other, and private parts of Python, where mypy does not look.
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

from nanogrid_warm import begin, lesson, places
from nanogrid_warm.imports import is_changed

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Iterable, Iterator
    from typing import Any

    from nanogrid_warm.imports import Imports

OWN_PREFIX = "NANOGRID_"
OF_HANDLERS = frozenset(
    (
        *("_HANDLER", "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "AWS_REGION", "LAMBDA_TASK_ROOT"),
        *(f"AWS_LAMBDA_FUNCTION_{name}" for name in ("NAME", "VERSION", "MEMORY_SIZE")),
        *(f"AWS_LAMBDA_{name}" for name in ("INITIALIZATION_TYPE", "LOG_GROUP_NAME", "LOG_STREAM_NAME")),
    )
)
"""Variables that every handler has. Packages may read them; the image's own libraries do not, and are not searched for them."""

START_MODULES = ("sitecustomize", "usercustomize")
LIMIT_BYTES = 16 << 20
HANDLERS = "/nanogrid/runner/call_handler.py"
HANDLER = 2
"""The word of a command that names a handler."""


class Packages:
    """Which packages to import beforehand, and what they could have read of the environment."""

    def __init__(self) -> None:
        self.beginning: tuple[str, ...] = ()
        """What the program imports in its beginning."""
        self.names: tuple[str, ...] = ()
        """The same, where packages are among it: then it is imported beforehand."""
        self.handler = ""
        """The module of the handler whose beginning it is; "" for a script."""
        self.known = ()
        self.loaded = False
        self.arguments: list[str] | None = None
        """The command line, where they have looked at it."""
        self.checked = False
        """Whether a spare has imported them, and found that nothing else was changed by that: then the next ones need not look."""
        self.reads = Reads()
        self.libraries: list[bytes] = []
        """Which of the image's own libraries they have brought."""
        self.file = -1
        """A memory file with the words that compiled modules hold; -1 until a run wants to know."""
        self.words: bytes | None = None
        """The same in a spare, which has no such file open: it would be one of all spares, and a run could write to it."""

    def learn(self, learned: lesson.Lesson) -> bool:
        """Remember the beginning for the next spares, which is the same in each run. Whether it was not known."""
        if not learned.beginning or (self.beginning and self.handler == learned.handler):
            return False
        self.beginning = tuple(dict.fromkeys(learned.beginning))
        self.handler = learned.handler
        self.names = self.beginning if any(map(lesson.is_package, self.beginning)) else ()
        self.checked = False
        self.forget_words()
        return True

    def forget(self) -> None:
        """Import none beforehand."""
        self.beginning = self.names = ()
        self.forget_words()

    def suits(self, argv: list[str]) -> bool:
        """Whether a run with this command has the beginning that is known, and its packages could not tell its command line."""
        return not self.loaded or (self.handler == handler_of(argv) and self.arguments in (None, argv[1:]))

    def forget_words(self) -> None:
        """What compiled modules hold is to be read again."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def read_words(self) -> None:
        """Take them from the memory file in a spare, before any code of the function runs there."""
        if self.file >= 0:
            self.words = os.pread(self.file, LIMIT_BYTES, 0)
            self.forget_words()

    def allow(self, env: dict[str, str], own: dict[str, str]) -> bool:
        """Whether a run with this environment may find the packages that are imported here, and the interpreter as it is.

        `own` is the container's own environment, with which they were imported.
        """
        if self.loaded and not self._could_not_tell(env, own):
            return False
        if env.get("PYTHONPATH") != places.PACKAGES:
            return True
        try:
            tops = {name.partition(".")[0] for name in os.listdir(places.PACKAGES)}
        except OSError:
            return True
        return tops.isdisjoint(START_MODULES) and tops.isdisjoint(sys.modules)

    def wants_words(self, env: dict[str, str], own: dict[str, str]) -> bool:
        """Whether a run like this could have them, if it were known which words compiled modules hold."""
        return self.loaded and self.words is None and self.reads.miss(_different(env, own))

    def _could_not_tell(self, env: dict[str, str], own: dict[str, str]) -> bool:
        names = _different(env, own)
        if not self.reads.miss(names):
            return False
        names = [name for name in names if not name.startswith(OWN_PREFIX)]
        if not names:
            return True
        words = self.words or b""
        # The end of a word is enough: a linker lets one string lie in the end of another.
        if not words or not all(_is_plain(name) and name.encode() + b"\n" not in words for name in names):
            return False
        ends = [name.encode() + b"\0" for name in names if name not in OF_HANDLERS]
        return not ends or not any(_holds(library, ends) for library in self.libraries)

    def put_path(self, env: dict[str, str]) -> None:
        """Put the packages where Python puts what PYTHONPATH names: before its own library, after the script's folder."""
        if env.get("PYTHONPATH") == places.PACKAGES and places.PACKAGES not in sys.path:
            sys.path.insert(0, places.PACKAGES)

    def load(self, imports: Imports, own: dict[str, str], script: str) -> bool:
        """Import them in this process. Whether it is now as a new interpreter would be but for what is hidden in it.

        `own` is the environment that is in place.
        """
        if imports.shadowed(os.listdir(places.WORKSPACE)):
            return True  # what Python would find is not what is hidden
        sys.path.insert(0, places.PACKAGES)
        _silence()
        before, children, libraries = _state_of_process(), _children(), _libraries()
        others = None if self.checked else _Others({**sys.modules, **imports.hidden})
        arguments = Arguments(sys.argv)
        self.reads.begin()
        sys.path.insert(0, places.WORKSPACE)  # as the script's folder would be
        try:
            apart = self._import(imports, script, arguments)
            sys.path.remove(places.WORKSPACE)
            sys.path_importer_cache.pop(places.WORKSPACE, None)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001  # whatever it is that the function's packages do
            return False
        finally:
            self.reads.end()
        self.loaded = True
        if arguments.read:
            self.arguments = list(sys.argv)
        if _children() != children:  # whom the environment was given to
            self.reads.all = True
        self.libraries = [
            path for path in _libraries() - libraries if not path.startswith(places.PACKAGES.encode() + b"/")
        ]
        gc.freeze()
        return (
            apart
            and not os.fstat(1).st_size
            and sys.getrefcount(arguments) <= UNKEPT
            and (others is None or others.are_as_before())
            and _has_no_threads()
            and _state_of_process() == before
            and os.environ._data == {begin.as_bytes(name): begin.as_bytes(value) for name, value in own.items()}
        )

    def _import(self, imports: Imports, script: str, arguments: Arguments) -> bool:
        """Import them as the program is going to, in its own beginning. Raises what they raise.

        Whether none has bound a name anew in one that the program has imported before, and could have read it from.
        """
        main = vars(sys.modules["__main__"])
        main["__file__"] = script
        own, sys.argv = sys.argv, arguments
        seen: dict[str, tuple[Any, dict[str, Any]]] = {}
        try:
            for _ in imports.replay(self.names, {"__name__": self.handler} if self.handler else main):
                if not self.checked:
                    seen.update(_packages(seen))
        finally:
            sys.argv = own
            del main["__file__"]
        apart = not any(is_changed(*kept) for kept in seen.values())
        imports.hide_beginning(self.known, self.names)
        return apart

    def write_words(self) -> None:
        """Write the words of all compiled modules into the memory file: what they could ask the environment for.

        Done in a child, as the function's user. Where it cannot be done, the file stays empty.
        """
        import mmap
        import re

        pattern = re.compile(rb"[A-Z_][A-Z0-9_]{2,}")
        words: set[bytes] = set()
        for folder, _, names in os.walk(places.PACKAGES):
            for name in names:
                if ".so" not in name:
                    continue
                with open(os.path.join(folder, name), "rb") as file:
                    if os.fstat(file.fileno()).st_size:
                        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                            words.update(pattern.findall(data))
        text = b"\n" + b"\n".join(words) + b"\n"
        if len(text) <= LIMIT_BYTES:
            os.pwrite(self.file, text, 0)


class Arguments(list):  # type: ignore[type-arg]
    """A command line that knows whether anybody has looked at it."""

    read = False


def _reading(name: str) -> Any:
    own = getattr(list, name)

    def read(self: Arguments, *arguments: Any) -> Any:
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
    setattr(Arguments, _name, _reading(_name))
UNKEPT = 2
"""References to what only one variable refers to, while they are counted."""


def handler_of(argv: list[str]) -> str:
    """The module of the handler that a command calls; "" for a script."""
    if argv[1:2] != [HANDLERS] or len(argv) == HANDLER:
        return ""
    return argv[HANDLER].replace("/", ".").rpartition(".")[0]


class Reads:
    """Which variables were asked for by `os.environ`, or that all of them were looked at."""

    def __init__(self) -> None:
        self.names: set[object] = set()
        self.all = False
        self._own: tuple[Any, Any] = (None, None)

    def begin(self) -> None:
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

    def end(self) -> None:
        """Watch no more."""
        kind = type(os.environ)
        kind.__getitem__, kind.__iter__ = self._own  # type: ignore[method-assign]

    def miss(self, names: Iterable[str]) -> bool:
        """Whether none of these was read. Where all were, names of ours do not count: each run has its own."""
        if self.all:
            return all(name.startswith(OWN_PREFIX) and name not in self.names for name in names)
        return self.names.isdisjoint(names)


def _different(env: dict[str, str], own: dict[str, str]) -> list[str]:
    """Names of the variables that are not the same in both."""
    return [name for name in {**own, **env} if name != "PYTHONPATH" and env.get(name) != own.get(name)]


def _is_plain(name: str) -> bool:
    """Whether `write_words` would have found it."""
    return (
        len(name) > 2
        and name.isascii()
        and name.isupper()
        and name.replace("_", "A").isalnum()
        and not name[0].isdigit()
    )


def _packages(known: Iterable[str]) -> Iterator[tuple[str, tuple[Any, dict[str, Any]]]]:
    """The modules of packages that are new, and what their names mean now."""
    for name, module in list(sys.modules.items()):
        if name not in known and str(getattr(module, "__file__", "")).startswith(places.PACKAGES + "/"):
            yield name, (module, dict(vars(module)))


def _silence() -> None:
    """Let the standard streams be a memory file of this process's own, in place of those that it shares with the first one."""
    silent = os.memfd_create("silent", os.MFD_CLOEXEC)
    for stream in range(3):
        os.dup2(silent, stream)
    os.close(silent)


class _Others:
    """Modules that are not the packages': what importing the packages changes in them, every run would see, also one that does not
    import these packages.
    """

    def __init__(self, modules: dict[str, Any]) -> None:
        self._modules = modules
        self._kept = {
            id(module): (module, dict(vars(module))) for module in modules.values() if hasattr(module, "__dict__")
        }
        for _, names in list(self._kept.values()):
            for value in names.values():
                if isinstance(value, type) and value.__flags__ & HEAP_TYPE:
                    self._kept[id(value)] = value, dict(vars(value))
        self._registers = self._said_to_all()

    def are_as_before(self) -> bool:
        """Whether all names that are not private mean what they meant, and nothing is said to all programs' parts at once."""
        return self._registers == self._said_to_all() and not any(_is_changed(*kept) for kept in self._kept.values())

    def _said_to_all(self) -> list[object]:
        logging, socket = map(self._modules.get, ("logging", "_socket"))
        return [
            logging and [logging.root.handlers[:], logging.root.level, logging.root.manager.disable],
            socket and socket.getdefaulttimeout(),
            [entry for entry in _warnings.filters if entry[1] is None and entry[2].__module__ == "builtins"],
        ]


def _is_changed(owner: Any, before: dict[str, Any]) -> bool:
    names = vars(owner)
    for name in {**before, **names}:
        was, value = before.get(name, MISSING), names.get(name, MISSING)
        if was is value or (name.startswith("_") and not (isinstance(owner, type) and name[:2] == "__")):
            continue
        if type(was) is type(value) and isinstance(was, PLAIN) and was == value:  # made anew
            continue
        fills_in = was is None and not callable(value)  # a cache that was empty
        on_demand = was is MISSING and "__getattr__" in before
        if not (fills_in or on_demand or (name[:2] == "__" and not callable(value))):
            return True
    return False


HEAP_TYPE = 1 << 9
"""Of a class that can be changed."""
MISSING = object()
PLAIN = (int, float, str, bytes, tuple)
FIELDS = (b"Name:", b"Umask:", b"SigBlk:", b"SigIgn:", b"SigCgt:", b"ShdPnd:", b"Cap", b"NoNewPrivs:", b"Seccomp:")
LIBRARYS_SIGNALS = 0b11 << 31
"""Of glibc and musl alike: 32 and 33, as bits from 1. Many compiled packages start threads when they are imported."""
TIMERS = range(3)
THREAD_ENDS_MS = 20


def _state_of_process() -> list[object]:
    """What code can change of its process, of the interpreter as a whole, and which processes there are, to be compared."""
    with open("/proc/self/status", "rb") as status, open("/proc/self/limits", "rb") as limits:
        kernel = [_without_library(line) for line in status if line.startswith(FIELDS)] + limits.readlines()
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


def _without_library(line: bytes) -> bytes:
    """A line of the process's status; which signals are caught without those that the C library takes with its first thread."""
    name, _, mask = line.partition(b":")
    return line if name != b"SigCgt" else b"%x" % (int(mask, 16) & ~LIBRARYS_SIGNALS)


def _has_no_threads() -> bool:
    """Whether all have ended. One that was waited for may still be about to."""
    for _ in range(THREAD_ENDS_MS):
        if not _thread._count():
            return True
        time.sleep(0.001)
    return False


def _children() -> list[bytes]:
    """What the kernel counts of children that have ended: one that has done anything has touched pages."""
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return [fields[8], fields[10]]


def _libraries() -> set[bytes]:
    """The files that code of this process lies in."""
    with open("/proc/self/maps", "rb") as maps:
        lines = [line.rstrip(b"\n").split(None, 5) for line in maps]
    return {line[5] for line in lines if len(line) > 5 and b"x" in line[1] and line[5].startswith(b"/")}


def _holds(path: bytes, texts: list[bytes]) -> bool:
    """Whether any of these is in a file, or it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    data = os.pread(file, os.fstat(file).st_size, 0)
    os.close(file)
    return any(text in data for text in texts)


def _descriptors() -> list[tuple[int, int, int]]:
    """Which descriptors are open, and on what."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:  # that of the list itself
            continue
        found.append((int(name), status.st_dev, status.st_ino))
    return found
