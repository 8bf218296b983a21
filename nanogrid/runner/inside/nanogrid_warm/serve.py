"""The first process: keeps one spare child ready, gives it a request, ends what the run leaves, and tells the host.

The rule: the host hears `ended` only when nothing of the run lives any more, and `ready` only from a spare that has nothing
left to do but run. The function's user can neither signal, trace nor imitate this process, and never holds its connection.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH116, S302, SIM105
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _signal
import errno
import marshal
import os
import select
import stat
import sys
import time

from nanogrid_warm import begin, channel, kernel, lesson, source, spare

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    import _socket
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

CODE = "/nanogrid/code"
FORK_ATTEMPTS = 100
FAILED = 70
LOOK_EVERY_MS = 1
FORK_WAIT_S = 0.01
CHANGES_LIMIT = 8
"""How often the held interpreter may become another one: a function whose requests alternate is not to pay for it each time."""
WORDS_BYTES = 500


def prepare(file: int, modules: Iterable[str], faithful: bool) -> Callable[[], None]:
    """Read what the process before has left in `file`; a function that holds this interpreter and serves the host.

    `modules` are those of a new interpreter. Not `faithful`: this one is not like a new one, and only what is executed runs.

    That function returns in a child only, in the process that is to go on as Python does.
    """
    state = marshal.loads(os.pread(file, os.fstat(file).st_size, 0))
    os.close(file)
    server = Server(state)
    if not faithful:
        server.held.program = None
    server.held.leave.install()
    server.held.known = server.held.packages.known = frozenset(modules)
    return server.serve


class Server:
    """The first process's own state: its connection, and how the interpreter that it holds was started."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.connection = channel.open_descriptor(state["control"])
        os.set_inheritable(state["control"], False)
        self.held = spare.Held(state)
        self.lessons = 0
        self.rehearsed: bool = state["rehearsed"]
        self.request: dict[str, Any] = {}
        self.packet: bytes | None = None
        self.kinds: tuple[int, ...] = ()
        self.code: tuple[int, int] | None = None

    def serve(self) -> None:
        """Serve the host until it is gone. Returns in the child that runs a request in this interpreter."""
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001  # the host is to hear why, whatever it was
            self._give_up(spare.words(b"broken the runner failed:", error))

    def _serve(self) -> None:
        _signal.signal(_signal.SIGTERM, _leave)
        if not self.state["changes"]:
            channel.send(self.connection, b"hello " + ".".join(map(str, sys.version_info[:3])).encode())
        if self.state["standard"]:
            self._import_beforehand(self.state["standard"])
        if self.state["own"]:
            self._compile()
        spare.warm_up()
        while True:
            self._heed_code()
            here, there = channel.pair()
            child = self._fork()
            if child == 0:
                here.close()
                self.connection.close()
                self._be_child(there)
                return
            there.close()
            if self.rehearsed:
                self._tend(child, here)
            else:
                self._learn_memory(here)
            here.close()

    def _be_child(self, there: _socket.socket) -> None:
        """Live the child's life. Whatever goes wrong in it before the function's code is the platform's trouble."""
        try:
            (spare.live if self.rehearsed else spare.rehearse)(there, self.held)
        except BaseException as error:  # noqa: BLE001
            if there.fileno() >= 0:
                channel.send(there, spare.words(b"broken", error))
            os._exit(FAILED)

    def _learn_memory(self, pair: _socket.socket) -> None:
        """Read what the rehearsal tells: lines of address and size."""
        text, _ = channel.receive(pair)
        _end_all()
        self.rehearsed = True
        self.held.hot = [
            kernel.populating(*(int(number, 16) for number in line.split())) for line in text.split(b"\n")[:-1]
        ]

    def _fork(self) -> int:
        for _ in range(FORK_ATTEMPTS):
            try:
                return os.fork()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                    raise
                time.sleep(FORK_WAIT_S)
        self._give_up(b"broken the next process could not be started")
        return None

    def _tend(self, child: int, pair: _socket.socket) -> None:
        """One spare's life: announce it, hand it a request, see the run to its end and report it."""
        end = self._watched(child)  # before it is announced: who looks at a runner that is ready finds it as it stays
        try:
            if not (self._announce(pair) and self._hand_over(pair)):
                _end_all()
                return
            status, killed = self._see_through(child, end)
        finally:
            if end >= 0:
                os.close(end)
        ended_ns = time.monotonic_ns()
        answer = _answer(pair)
        if answer.startswith(b"broken"):
            self._give_up(answer)
        how, started_ns = _how(answer, ended_ns)
        channel.send(self.connection, b"ended %d %s %d %d %d" % (status, how, started_ns, ended_ns, killed))
        os.sched_yield()  # the host may have been woken on this very processor, and what follows takes a while
        if self.packet is not None:
            self.request, self.packet = channel.message(self.packet, []), None
        self.held.touches = how == b"python"
        if how == b"python":
            if self.held.learn:
                self._learn_imports()
        elif self.request["in_process"]:
            self._change()

    def _announce(self, pair: _socket.socket) -> bool:
        """Tell the host that the spare is ready. False where it wants to begin again, without what it could not import."""
        word = self._await_spare(pair)
        if word.startswith(b"ready"):
            self._note_scan(word)
            channel.send(self.connection, b"ready")
            return True
        if word == b"again":
            self.held.packages.forget()
            return False
        _end_all()
        self._give_up(word or b"broken the next process ended before it was ready")
        return False

    def _note_scan(self, word: bytes) -> None:
        """Remember what the sources say: they are read once."""
        _, *flags = word.split()
        if flags and self.held.scan is None:
            self.held.scan = source.Scan(*(flag != b"0" for flag in flags))

    def _learn_imports(self) -> None:
        """Import beforehand what the run has imported, as far as it is the standard library's."""
        standard, packages, own = lesson.read(self.held.uid)
        if self.held.bytecode.learn(own):
            self._compile()
        self.lessons += 1
        if not (standard or packages or own) or self.lessons >= lesson.LESSONS_LIMIT:
            self.held.learn = False
        self.held.packages.learn(packages, self._environment())
        if standard:
            self._import_beforehand(standard)
            spare.warm_up()
            self.rehearsed = False

    def _compile(self) -> None:
        """Let a child compile the function's own modules, into a memory file that every spare inherits."""
        compiled = self.held.bytecode
        if compiled.file >= 0:
            os.close(compiled.file)
        compiled.file = os.memfd_create("bytecode", os.MFD_CLOEXEC)
        child = self._fork()
        if child == 0:
            self.connection.close()
            spare.compile_own(self.held)
        os.waitpid(child, 0)

    def _environment(self) -> dict[str, str]:
        return {**self.state["env"], **self.request["env"]}

    def _import_beforehand(self, standard: Iterable[str]) -> None:
        """Import modules and hide them. One that cannot be imported here ends all that."""
        hidden = self.held.imports
        hidden.show_all()
        try:
            done = []
            for name in standard:
                if lesson.is_standard(name) and name not in sys.modules:
                    hidden.load(name)
                    done.append(name)
            hidden.hide(self.held.known, done)
        except BaseException:  # noqa: BLE001  # whatever a module does when it is imported
            hidden.hide(self.held.known)
            hidden.forget()
            self.held.learn = False

    def _heed_code(self) -> None:
        """Start anew when the code is not what it was: nothing that was learned from one piece of code is for another."""
        try:
            status = os.stat(CODE)
        except OSError:
            return
        code = (status.st_dev, status.st_ino)
        if self.code not in (None, code):
            begin.become({**self.state, **self.state["fresh"], "changes": 1, "rehearsed": True})
        self.code = code

    def _change(self) -> None:
        """Become the interpreter that the request has asked for, where the one that is held was another one."""
        env = self._environment()
        wanted = {"command": self.request["argv"], "special": begin.special(env), "kinds": self.kinds}
        if (
            wanted == {name: self.state[name] for name in wanted}
            or self.state["changes"] >= CHANGES_LIMIT
            or len(wanted["command"]) < 2
            or wanted["command"][1].startswith("-")
            or begin.interpreter(wanted["command"][0], self.state["env"]) is None
            or not begin.may_hold(self.state["env"], wanted["special"])
        ):
            return
        held = self.held
        begin.become(
            {
                **self.state,
                **wanted,
                "changes": self.state["changes"] + 1,
                "rehearsed": False,
                "standard": list(held.imports.roots),
                "packages": (held.packages.names, held.packages.env),
                "own": held.bytecode.paths,
                "scan": held.scan and (held.scan.curious, held.scan.ctypes),
            }
        )

    def _await_spare(self, pair: _socket.socket) -> bytes:
        """What the spare says; leaves when the host goes meanwhile."""
        poll = self._poll(pair)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if pair.fileno() in ready:
                return channel.receive(pair)[0][:WORDS_BYTES]
            self._hear()  # a kill that comes too late: its run has ended

    def _poll(self, other: _socket.socket | int) -> select.poll:
        poll = select.poll()
        poll.register(other, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        return poll

    def _hand_over(self, pair: _socket.socket) -> bool:
        """Wait for a request and pass it on. False when the spare is gone before one came."""
        poll = self._poll(pair)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self.connection.fileno() not in ready:
                return False
            packet, descriptors = channel.receive(self.connection)
            if not packet:
                self._leave()
            try:
                if len(descriptors) >= channel.STREAMS:
                    self.kinds = tuple(
                        stat.S_IFMT(os.fstat(number).st_mode) for number in descriptors[: channel.STREAMS]
                    )
                    sent = channel.send(pair, packet, descriptors)
                    # Read when the run is over, unless it lies in a descriptor: the spare is not to wait for this processor.
                    self.packet = packet
                    if len(descriptors) > channel.STREAMS:
                        self.request, self.packet = channel.message(packet, descriptors), None
                    return sent
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _watched(self, child: int) -> int:
        """A descriptor that tells of the child's end; -1 on an old kernel, or where a profile forbids it."""
        try:
            return os.pidfd_open(child)
        except (AttributeError, OSError):
            return -1

    def _see_through(self, child: int, end: int) -> tuple[int, int]:
        """Wait for the child's end, then end all that it started: its wait status, and how many had to be killed."""
        if end >= 0:
            self._wait_until_ended(end)
        else:
            self._look_until_ended(child)
        _, status = os.waitpid(child, 0)
        return status, _end_all()

    def _wait_until_ended(self, process: int) -> None:
        poll = self._poll(process)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if process in ready:
                return
            self._hear()
            _kill_all()

    def _look_until_ended(self, child: int) -> None:
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if poll.poll(LOOK_EVERY_MS):
                self._hear()
                _kill_all()

    def _hear(self) -> None:
        """Take what the host says where it can only be a kill; leaves when the host is gone."""
        packet, descriptors = channel.receive(self.connection)
        for descriptor in descriptors:
            os.close(descriptor)
        if not packet:
            self._leave()

    def _give_up(self, words: bytes) -> NoReturn:
        channel.send(self.connection, words)
        self._leave()

    def _leave(self) -> NoReturn:
        _end_all()
        os._exit(0)


def _answer(pair: _socket.socket) -> bytes:
    """What the child said of its request before it ran it; b"" where it did not come so far."""
    pair.setblocking(False)
    try:
        return channel.receive(pair)[0][:WORDS_BYTES]
    except BlockingIOError:
        return b""


def _how(answer: bytes, ended_ns: int) -> tuple[bytes, int]:
    """How the run was started, and when: as the child says, who may have been ended before it could."""
    how, _, started_ns = answer.partition(b" ")
    if how in (b"python", b"exec") and started_ns.isdigit():
        return how, min(int(started_ns), ended_ns)
    return b"exec", ended_ns


def _kill_all() -> None:
    """Kill every process in this container but this one."""
    try:
        os.kill(-1, _signal.SIGKILL)
    except ProcessLookupError:
        pass


def _end_all() -> int:
    """Kill and reap until nobody is left. How many there were that had not ended by themselves."""
    _kill_all()
    killed = 0
    while True:
        try:
            _, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return killed
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == _signal.SIGKILL


def _leave(_number: int, _frame: object) -> NoReturn:
    os._exit(0)
