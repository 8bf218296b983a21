"""The spare: a child that has done everything a run needs before the request is there, as the function's user.

The rule: from `drop` on it is the function's user, for good, and what it holds of the first process's are two connections of its own:
one on which it says a few words to it, one on which the host asks for one run. Where packages of the function were imported, its
code may have them: so nobody believes more of what comes from there than what it may do.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH110, PTH112, PTH120, S606
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _signal
import errno
import gc
import os
import stat
import sys
import time

from nanogrid_warm import (
    begin,
    bytecode,
    channel,
    imports,
    kernel,
    leave,
    lesson,
    memory,
    packages,
    places,
    source,
    workspace,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    import _socket
    from collections.abc import Sequence
    from typing import Any, NoReturn

OOM_FIRST = b"1000"
SHELL = "/bin/sh"
COMPILERS = "/nanogrid/runner/bin"
REHEARSALS = 3
SCRIPT = 2
"""So many words of a command say which program is run; what follows are its arguments."""

TOOK, PYTHON, WORDS, HELD, ANEW = b"T", b"P", b"W", b"H", b"A"
"""What a spare says once it has its request: that it has (with the time), that it goes on in the held interpreter, and for
the next run wishes that the packages' words were known, another interpreter were held, or the beginning were learned anew."""
TIME_BYTES = 8

KEY_BYTES = 32
VARIABLES_LIMIT = 1000
"""With more than this, setting one after the other takes longer than a new interpreter does, which is given them all at once."""

AGAIN = 75
"""The exit code of a spare that could not import the function's packages without a trace."""


class Held:
    """The held interpreter: how it was started, what it has imported beforehand, and what is known of the function."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.scan: Any = None if state["scan"] is None else source.Scan(*state["scan"])
        self.uid = state["uid"]
        self.gid = state["gid"]
        self.network = workspace.Network() if state["own_network"] else None
        self.env = state["env"]
        self.command = state["command"]
        self.program = begin.interpreter(self.command[0], self.env) if state["faithful"] else None
        self.special = state["special"]
        self.kinds = kinds()
        self.added = {
            name: os.environ[name] for name in os.environ if name not in state["env"] and name not in self.special
        }
        """What Python itself has added to its environment when it started: `LC_CTYPE`, where the locale is C."""
        self.known = ()
        self.imports = imports.Imports()
        self.leave = leave.Leave()
        self.learn = state["learn"]
        self.bytecode = bytecode.Bytecode(state["own"])
        self.packages = packages.Packages()
        self.hot = ()
        self.touches = True
        """Whether the next run is likely to use this interpreter, and so the pages that it has."""

    def fits(self, request: dict[str, Any], env: dict[str, str]) -> bool:
        """Whether a request can run in the held interpreter and nobody could tell."""
        return (
            request["in_process"]
            and kernel.KEEPS_NAMES_OUT
            and request["argv"][:SCRIPT] == self.command
            and len(env) <= VARIABLES_LIMIT
            and self._is_found(env)
            and begin.held_as(env, self.env) == self.special
            and kinds() == self.kinds
            and not self.scan.curious
            and not has_user_site(env)
            and self.packages.suits(request["argv"])
            and self.packages.allow(env, self.env)
        )

    def _is_found(self, env: dict[str, str]) -> bool:
        """Whether the command's name means the held interpreter, with the request's PATH too."""
        if self.program is None:
            return False
        return env.get("PATH") == self.env.get("PATH") or begin.find(self.command[0], env) == self.program

    def wish(self, request: dict[str, Any], env: dict[str, str]) -> bytes:
        """What the first process could do for the next run like this; b"" for nothing."""
        if not request["in_process"] or self.program is None:
            return b""
        if request["argv"][:SCRIPT] == self.command and not self.packages.suits(request["argv"]):
            return ANEW
        if self.packages.wants_words(env, self.env):
            return WORDS
        special = begin.held_as(env, self.env)
        command = request["argv"][:SCRIPT]
        if special is None or (command, special, kinds()) == (self.command, self.special, self.kinds):
            return b""
        text = HELD + " ".join(str(kind) for kind, _ in kinds()).encode()
        names = {**begin.special(self.env), **special}
        changed = [f"{name}={special.get(name, '')}" for name in names if self.env.get(name) != special.get(name)]
        text = b"\n".join([text, *map(begin.as_bytes, (*command, *changed))])
        return text if self.wanted(text) is not None else b""

    def wanted(self, wish: bytes) -> dict[str, Any] | None:
        """The interpreter that a wish names. None where any word of it is not out of the sets that are known here."""
        first, name, script, *changed = (*wish[1:].decode("ascii", "replace").split("\n"), "", "")
        formats = tuple(int(number) if number.isdigit() else -1 for number in first.split())
        special = begin.held_as({**self.env, **dict(line.split("=", 1) for line in changed if "=" in line)}, self.env)
        if (
            wish[:1] != HELD
            or len(formats) != channel.STREAMS
            or not set(formats) <= set(begin.STREAM_KINDS)
            or special is None
            or begin.interpreter(name, self.env) is None
            or not (_is_script(script) and self._is_program(name))
        ):
            return None
        safe = begin.safe_special(self.env)
        if any(self.env.get(variable) == value and variable not in safe for variable, value in special.items()):
            return None
        return {"command": [name, script], "special": special, "kinds": formats}

    def _is_program(self, name: str) -> bool:
        """Whether a program is named in the one way to write it: by its name alone, or by a path without a detour."""
        folder = os.path.dirname(name)
        known = self.env.get("PATH", os.defpath).split(os.pathsep)
        return not folder or (places.is_plain(name) and (folder in known or os.path.realpath(folder) == folder))


def _is_script(name: str) -> bool:
    """Whether it is our own program for handlers, or a file of the code, in the one way to write it."""
    path = places.CODE + "/" + name
    return name == packages.HANDLERS or (
        not name.startswith("-")
        and places.is_plain(path)
        and os.path.exists(path)
        and lesson.is_straight(places.CODE, os.path.dirname(path))
    )


def has_user_site(env: dict[str, str]) -> bool:
    """Whether Python would look for packages below this home: where there is something, a new interpreter does it all."""
    return os.path.isdir(env.get("HOME", "") + "/.local/lib")


def kinds() -> list[tuple[int, int]]:
    """What the standard streams are, as far as Python's own streams depend on it."""
    return [(stat.S_IFMT(status.st_mode), status.st_blksize) for status in map(os.fstat, range(channel.STREAMS))]


def live(meeting: channel.Meeting, held: Held) -> None:
    """The child's whole life before the function's code: returns where Python itself is to go on."""
    trouble, started = _settle_in(held)
    meeting.join()
    pair, requests = meeting.there, meeting.requests
    if trouble:
        _give_up(pair, trouble)
    channel.send(pair, b"ready" if held.scan is None else b"ready %d %d" % (held.scan.curious, held.scan.ctypes))
    packet, descriptors = channel.receive(requests)
    requests.close()
    if not packet:
        os._exit(0)
    channel.send(pair, TOOK + time.monotonic_ns().to_bytes(TIME_BYTES, "little"))
    request = channel.message(packet, descriptors)
    try:
        if not started:
            _lay_out(held)
            held.scan = held.scan or source.Scan()
        payload = descriptors[0]
        descriptors[0] = workspace.lay_out_payload(payload)
        os.close(payload)
    except OSError as error:
        _give_up(pair, words(b"broken the code could not be laid out:", error))
    connect_streams(descriptors)
    env = {**held.env, **request["env"]}
    if request["argv"][1:SCRIPT] == [packages.HANDLERS]:
        env.setdefault("AWS_EXECUTION_ENV", "AWS_Lambda_python{}.{}".format(*sys.version_info))
    if request["compiler_cache"]:
        env["PATH"] = COMPILERS + os.pathsep + env.get("PATH", os.defpath)
    if held.fits(request, env):
        channel.send(pair, PYTHON)
        pair.close()
        go_on(held, request["argv"], env)
        return
    if wish := held.wish(request, env):
        channel.send(pair, wish)
    pair.close()
    execute(request["argv"], env)


def _give_up(pair: _socket.socket, trouble: bytes) -> NoReturn:
    channel.send(pair, trouble)
    os._exit(0)


def _settle_in(held: Held) -> tuple[bytes, bool]:
    """Become ready: what went wrong, and whether the code was there."""
    if held.touches:
        kernel.populate(held.hot)  # first, because becoming ready writes to them too
    try:
        drop(held)
        held.bytecode.load()
        held.packages.read_words()
        workspace.clean()
        if held.network is not None:
            held.network.await_quiet()
            held.network.require_forgetful()
            held.network.close()
    except OSError as error:
        return words(b"unclean", error), False
    started = workspace.has_code()
    try:
        _lay_out(held)
        if held.packages.names:
            _import_packages(held)
            workspace.clean()
            _lay_out(held)
        workspace.lay_out_result()
    except OSError as error:
        return words(b"broken the code could not be laid out:", error), started
    return b"", started


def _import_packages(held: Held) -> None:
    """Import the function's packages as a run with the container's own environment would; or end, for a spare that does not."""
    put_environment(held.env)
    put_user_site()
    put_time_zone(held)
    script = held.command[1]
    if not held.packages.load(
        held.imports, held.env, script if script.startswith("/") else f"{places.WORKSPACE}/{script}"
    ):
        os._exit(AGAIN)


def _lay_out(held: Held) -> None:
    if not workspace.has_code():
        return
    workspace.lay_out()
    if held.scan is None:
        held.scan = source.Scan()
        held.scan.folder(workspace.WORKSPACE)


def go_on(held: Held, argv: list[str], env: dict[str, str]) -> None:
    """Let Python go on with its own start, with arguments and an environment that are all the run's."""
    put_environment({**env, **held.added})
    put_arguments(argv)
    put_user_site()
    put_time_zone(held)
    put_beginnings(held)
    held.packages.put_path(env)
    held.bytecode.arm()
    handler = packages.handler_of(argv)
    if handler != held.packages.handler:
        held.imports.beginning = frozenset()
    held.imports.arm(learn=held.learn)
    log = held.imports.log
    held.leave.arm(held.scan.ctypes, None if log is None else lambda: lesson.write(log, handler))


def put_arguments(argv: list[str]) -> None:
    """Make `argv` the command line, as far as Python shows it."""
    sys.argv[:] = argv[1:]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = argv


def put_user_site() -> None:
    """Let `site` name the folders below the run's home, as it would have at its start."""
    site = sys.modules["site"]
    if site.USER_SITE is not None:
        site.USER_BASE = site.USER_SITE = None
        site.getusersitepackages()


def put_time_zone(held: Held) -> None:
    """Let the C library, and every `time` that was imported, read the run's `TZ`: it was not set before."""
    if "TZ" in os.environ:
        for module in (time, sys.modules.get("time"), held.imports.hidden.get("time")):
            if module is not None:
                module.tzset()


def put_beginnings(held: Held) -> None:
    """Let modules that keep something of the moment and the place of their import, or a secret that they made then, have the run's."""
    for name, renew in (("logging", _renew_logging), ("multiprocessing.process", _renew_processes)):
        module = held.imports.hidden.get(name) or sys.modules.get(name)
        if module is not None:
            renew(module)


def _renew_logging(module: Any) -> None:
    module._startTime = time.time_ns() if isinstance(module._startTime, int) else time.time()


def _renew_processes(module: Any) -> None:
    module.ORIGINAL_DIR = places.WORKSPACE
    module._current_process._config["authkey"] = module.AuthenticationString(os.urandom(KEY_BYTES))


def drop(held: Held) -> None:
    """Become the function's user, with no way back, and the first to go when memory runs out."""
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    os.setsid()
    account = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(account, OOM_FIRST)
    os.close(account)
    kernel.drop_bounding_set()
    os.setgroups([held.gid])
    os.setresgid(held.gid, held.gid, held.gid)
    os.setresuid(held.uid, held.uid, held.uid)
    kernel.own_proc_files()
    os.umask(0o022)


def compile_own(_: _socket.socket, held: Held) -> NoReturn:
    """A child's whole life that does nothing but compile the function's modules."""
    drop(held)
    held.bytecode.compile()
    os._exit(0)


def tidy(pair: _socket.socket, held: Held) -> NoReturn:
    """A child's whole life that does nothing but remove what the last run has left."""
    try:
        drop(held)
        workspace.clean()
    except OSError as error:
        _give_up(pair, words(b"unclean", error))
    _give_up(pair, b"clean")


def read_lesson(pair: _socket.socket, held: Held) -> NoReturn:
    """A child's whole life that reads what the last run has taught."""
    drop(held)
    _give_up(pair, lesson.learned())


def read_wish(answer: _socket.socket, held: Held, pair: _socket.socket) -> NoReturn:
    """A child's whole life that reads what a spare has wished for, and says it again where it is known."""
    drop(held)
    wish = channel.hear(pair)
    _give_up(answer, wish if held.wanted(wish) is not None else b"no")


def collect_words(_: _socket.socket, held: Held) -> NoReturn:
    """A child's whole life that reads what the packages' compiled modules could ask for."""
    drop(held)
    held.packages.write_words()
    os._exit(0)


def connect_streams(descriptors: Sequence[int]) -> None:
    """Put the request's descriptors where the standard streams are."""
    for stream, descriptor in enumerate(descriptors[: channel.STREAMS]):
        os.dup2(descriptor, stream)
    for descriptor in descriptors:
        os.close(descriptor)


def put_environment(env: dict[str, str]) -> None:
    """Make `env` the environment, in this order, for Python and for what is started from it."""
    data = os.environ._data
    for name in list(data):
        os.unsetenv(name)
    data.clear()
    for name, value in env.items():
        raw_name, raw_value = begin.as_bytes(name), begin.as_bytes(value)
        os.putenv(raw_name, raw_value)
        data[raw_name] = raw_value


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Replace this process by a command, of which the environment is the whole one."""
    for number in (_signal.SIGPIPE, getattr(_signal, "SIGXFSZ", None)):
        if number is not None:
            _signal.signal(number, _signal.SIG_DFL)
    try:
        found = begin.find(argv[0], env)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        program, *arguments = map(begin.as_bytes, (found, *argv[1:]))
        variables = {begin.as_bytes(name): begin.as_bytes(value) for name, value in env.items()}
        try:
            os.execve(program, [begin.as_bytes(argv[0]), *arguments], variables)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execve(SHELL, [SHELL, program, *arguments], variables)  # a script that does not say by what it is run
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(2, f"nanogrid: {argv[0]}: {reason}\n".encode("utf-8", "replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def rehearse(pair: _socket.socket, held: Held) -> None:
    """Run an empty function as if it were a real one, and tell which memory that has written to. Returns like `live`."""
    spans = memory.regions()
    drop(held)
    if held.network is not None:
        held.network.close()
    workspace.clean()
    file = os.open(b"/workspace/main.py", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(file, PROGRAM + b"".join(b"import %s\n" % root.encode() for root in held.imports.roots))
    os.close(file)
    held.scan = source.Scan()
    held.scan.folder(workspace.WORKSPACE)
    nowhere = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    connect_streams([os.dup(nowhere), os.dup(nowhere), nowhere])
    go_on(held, [*held.command, "main.rehearsed"], dict(held.env))

    answer = pair.detach()  # a socket that is still there would be a reason for Python's own end

    def tell() -> None:
        runs = memory.written(spans)
        os.write(answer, b"".join(b"%x %x\n" % tuple(run) for run in runs)[: channel.PACKET_BYTES])

    held.leave.after = tell


PROGRAM = b"""
class Thing:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<{self.name}>"


def count(things):
    return {thing.name: [len(thing.name) * number for number in range(3)] for thing in things}


try:
    print((count([Thing("a"), Thing("bc")]), "%s %d" % ("text", 5), sorted({3, 1, 2})))
    raise ValueError
except ValueError:
    pass
"""


def warm_up() -> None:
    """Done in the first process: what a run does, so far as it leaves no trace, for the traces it leaves in memory."""
    for _ in range(REHEARSALS):
        names = {"__name__": "rehearsal"}
        exec(compile(PROGRAM.replace(b"print", b"repr"), "rehearsal", "exec", dont_inherit=True), names)  # noqa: S102
        put_environment(begin.environment())
    gc.collect()
    gc.freeze()


def words(word: bytes, error: BaseException) -> bytes:
    """What went wrong, in one line of ASCII."""
    return word + b" " + (str(error) or type(error).__name__).encode("ascii", "backslashreplace").replace(b"\n", b" ")
