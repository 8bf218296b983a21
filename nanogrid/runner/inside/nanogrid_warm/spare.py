"""The spare: a child that has done everything a run needs before the request is there, as the function's user.

The rule: from `drop` on it is the function's user, for good, and what it holds of the first process's is its end of one pair
of sockets, which is closed before any code of the function runs.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: S606
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _signal
import errno
import gc
import os
import stat
import time

from nanogrid_warm import begin, bytecode, channel, imports, kernel, leave, lesson, memory, packages, source, workspace

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    import _socket
    from collections.abc import Sequence
    from typing import Any, NoReturn

OOM_FIRST = b"1000"
SHELL = "/bin/sh"
COMPILERS = "/nanogrid/runner/bin"
REHEARSALS = 3


class Held:
    """The held interpreter: how it was started, what it has imported beforehand, and what is known of the function."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.scan: Any = None if state["scan"] is None else source.Scan(*state["scan"])
        self.uid = state["uid"]
        self.gid = state["gid"]
        self.env = state["env"]
        self.command = state["command"]
        self.program = begin.interpreter(self.command[0], self.env)
        self.special = state["special"]
        self.kinds = kinds()
        self.added = {
            name: os.environ[name] for name in os.environ if name not in state["env"] and name not in self.special
        }
        """What Python itself has added to its environment when it started: `LC_CTYPE`, where the locale is C."""
        self.known = ()
        self.imports = imports.Imports()
        self.leave = leave.Leave()
        self.learn = True
        self.bytecode = bytecode.Bytecode(state["own"])
        self.packages = packages.Packages(*state["packages"])
        self.hot = ()
        self.touches = True
        """Whether the next run is likely to use this interpreter, and so the pages that it has."""

    def fits(self, request: dict[str, Any], env: dict[str, str]) -> bool:
        """Whether a request can run in the held interpreter and nobody could tell."""
        return (
            request["in_process"]
            and kernel.AVAILABLE
            and request["argv"] == self.command
            and self._is_found(env)
            and begin.special(env) == self.special
            and kinds() == self.kinds
            and not self.scan.curious
            and self.packages.allow(env)
        )

    def _is_found(self, env: dict[str, str]) -> bool:
        """Whether the command's name means the held interpreter, with the request's PATH too."""
        if self.program is None:
            return False
        return env.get("PATH") == self.env.get("PATH") or begin.find(self.command[0], env) == self.program


def kinds() -> list[tuple[int, int]]:
    """What the standard streams are, as far as Python's own streams depend on it."""
    return [(stat.S_IFMT(status.st_mode), status.st_blksize) for status in map(os.fstat, range(channel.STREAMS))]


def live(pair: _socket.socket, held: Held) -> None:
    """The child's whole life before the function's code: returns where Python itself is to go on."""
    started = _settle_in(pair, held)
    channel.send(pair, b"ready" if held.scan is None else b"ready %d %d" % (held.scan.curious, held.scan.ctypes))
    packet, descriptors = channel.receive(pair)
    if not packet:
        os._exit(0)
    started_ns = time.monotonic_ns()
    request = channel.message(packet, descriptors)
    if not started:
        _lay_out(pair, held)
        held.scan = held.scan or source.Scan()
    connect_streams(descriptors)
    env = {**held.env, **request["env"]}
    if request["compiler_cache"]:
        env["PATH"] = COMPILERS + os.pathsep + env.get("PATH", os.defpath)
    if held.fits(request, env):
        channel.send(pair, b"python %d" % started_ns)
        pair.close()
        go_on(held, env)
        return
    channel.send(pair, b"exec %d" % started_ns)
    pair.close()
    execute(request["argv"], env)


def _settle_in(pair: _socket.socket, held: Held) -> bool:
    """Become ready. Whether the code was there for it."""
    if held.touches:
        kernel.populate(held.hot)  # first, because becoming ready writes to them too
    try:
        drop(held)
        workspace.clean()
    except OSError as error:
        channel.send(pair, words(b"unclean", error))
        os._exit(0)
    started = workspace.has_code()
    if started:
        _lay_out(pair, held)
    held.bytecode.load()
    if not held.packages.load(held.imports, put_environment):
        channel.send(pair, b"again")
        os._exit(0)
    return started


def _lay_out(pair: _socket.socket, held: Held) -> None:
    if not workspace.has_code():
        return
    try:
        workspace.lay_out()
        if held.scan is None:
            held.scan = source.Scan()
            held.scan.folder(workspace.WORKSPACE)
    except OSError as error:
        channel.send(pair, words(b"broken the code could not be laid out:", error))
        os._exit(0)


def go_on(held: Held, env: dict[str, str]) -> None:
    """Let Python go on with its own start, in an environment that is all the run's."""
    put_environment({**env, **held.added})
    held.packages.put_path(env)
    held.bytecode.arm()
    held.imports.arm(learn=held.learn)
    log = held.imports.log
    held.leave.arm(held.scan.ctypes, None if log is None else lambda: lesson.write(log))


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


def compile_own(held: Held) -> NoReturn:
    """A child's whole life that does nothing but compile the function's modules."""
    drop(held)
    held.bytecode.compile()
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
        raw_name, raw_value = os.fsencode(name), os.fsencode(value)
        os.putenv(raw_name, raw_value)
        data[raw_name] = raw_value


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Replace this process by a command."""
    for number in (_signal.SIGPIPE, getattr(_signal, "SIGXFSZ", None)):
        if number is not None:
            _signal.signal(number, _signal.SIG_DFL)
    program = begin.find(argv[0], env)
    try:
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            os.execve(program, argv, env)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execve(SHELL, [SHELL, program, *argv[1:]], env)  # a script that does not say by what it is run
    except OSError as error:
        os.write(2, os.fsencode(f"nanogrid: {argv[0]}: {error.strerror}\n"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def rehearse(pair: _socket.socket, held: Held) -> None:
    """Run an empty function as if it were a real one, and tell which memory that has written to. Returns like `live`."""
    spans = memory.regions()
    drop(held)
    workspace.clean()
    file = os.open(b"/workspace/main.py", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(file, PROGRAM + b"".join(b"import %s\n" % root.encode() for root in held.imports.roots))
    os.close(file)
    held.scan = source.Scan()
    held.scan.folder(workspace.WORKSPACE)
    nowhere = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    connect_streams([os.dup(nowhere), os.dup(nowhere), nowhere])
    go_on(held, dict(held.env))

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
        put_environment(dict(os.environ))
    gc.collect()
    gc.freeze()


def words(word: bytes, error: BaseException) -> bytes:
    """What went wrong, in one line of ASCII."""
    return word + b" " + (str(error) or type(error).__name__).encode("ascii", "backslashreplace").replace(b"\n", b" ")
