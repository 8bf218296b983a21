"""The first process: keeps one spare child ready, ends what a run leaves, and tells the host.

The rule: the host hears `ended` only when nothing of the run lives any more, and `ready` only from a spare that has nothing
left to do but run. The function's user can neither signal, trace nor imitate this process, and no other process ever holds its
connection. And since every run is forked from this process, it never reads what a run was given or has written:
requests go from the host to the spare, results by a descriptor to the host, and what children tell it are words out of sets
that it knows.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH116, SIM105
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _signal
import _socket
import errno
import os
import select
import stat
import sys
import time

from nanogrid_warm import begin, channel, kernel, lesson, places, source, spare

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

FORK_ATTEMPTS = 100
FAILED = 70
LOOK_EVERY_MS = 1
FORK_WAIT_S = 0.01
CHANGES_LIMIT = 8
"""How often the held interpreter may become another one: a function whose requests alternate is not to pay for it each time."""
WORDS_BYTES = 500
HANG_UP = select.POLLRDHUP
"""The host will send nothing more: it is gone, or wants the run to end."""


def prepare(state: dict[str, Any], modules: Iterable[str], faithful: bool) -> Callable[[], None]:
    """A function that holds this interpreter and serves the host. `state` is what the process before has left.

    `modules` are those of a new interpreter. Not `faithful`: this one is not like a new one, and only what is executed runs.

    That function returns in a child only, in the process that is to go on as Python does.
    """
    os.chdir("/")  # the workspace is where Python has started, and no place for this process to stay
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
        self.hung_up = False
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
            meeting = channel.Meeting(apart=self.rehearsed and bool(self.held.packages.names))
            child = self._fork()
            if child == 0:
                self.connection.close()
                meeting.step_away()
                self._be_child(meeting)
                return
            meeting.keep_own()
            if self.rehearsed:
                self._tend(child, meeting)
            else:
                self._learn_memory(meeting.here)
            meeting.close()

    def _be_child(self, meeting: channel.Meeting) -> None:
        """Live the child's life. Whatever goes wrong in it before the function's code is the platform's trouble."""
        try:
            if self.rehearsed:
                spare.live(meeting, self.held)
            else:
                spare.rehearse(meeting.there, self.held)
        except BaseException as error:  # noqa: BLE001
            if meeting.there.fileno() >= 0:
                channel.send(meeting.there, spare.words(b"broken", error))
            _fail(error)

    def _learn_memory(self, pair: _socket.socket) -> None:
        """Read what the rehearsal tells: lines of address and size."""
        text = channel.hear(pair)
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

    def _ask(self, live: Callable[[_socket.socket, spare.Held], object]) -> bytes:
        """What a child says whose whole life is `live`; b"" where it ended without a word."""
        here, there = channel.pair()
        child = self._fork()
        if child == 0:
            here.close()
            self.connection.close()
            try:
                live(there, self.held)
            except BaseException as error:  # noqa: BLE001
                _fail(error)
            finally:
                os._exit(FAILED)
        there.close()
        words = channel.hear(here)
        here.close()
        _end_all()
        return words

    # -- one spare

    def _tend(self, child: int, meeting: channel.Meeting) -> None:
        """One spare's life: announce it, see its run to the end and report it."""
        end = self._watched(child)  # before it is announced: who looks at a runner that is ready finds it as it stays
        try:
            if not self._announce(child, end, meeting):
                _end_all()
                return
            status, killed = self._see_through(child, end)
        finally:
            if end >= 0:
                os.close(end)
        ended_ns = time.monotonic_ns()
        how, started_ns, wish = self._account_of(meeting.here, ended_ns)
        if how:
            result = self._open_result()
            channel.send(
                self.connection,
                b"ended %d %s %d %d %d" % (status, how, started_ns, ended_ns, killed),
                [result] if result >= 0 else [],
            )
            if result >= 0:
                os.close(result)
        if self.hung_up:
            self._leave()
        if not how:  # it was gone before a request came
            return
        os.sched_yield()  # the host may have been woken on this very processor, and what follows takes a while
        self.held.touches = how == b"python"
        if how == b"python":
            if self.held.learn:
                self._learn_imports()
        elif wish:
            self._grant(wish, meeting.here)

    def _announce(self, child: int, end: int, meeting: channel.Meeting) -> bool:
        """Tell the host that the spare is ready. False where it is to begin again, without what it could not import."""
        word = self._await_spare(child, end, meeting)
        if word.startswith(b"ready"):
            self._note_scan(word)
            self.held.packages.checked = True
            meeting.introduce(b"ready", self.connection)
            return True
        _end_all()
        if not word and self.held.packages.names:
            self.held.packages.forget()
            return False
        self._give_up(word or b"broken the next process ended before it was ready")
        return False

    def _await_spare(self, child: int, end: int, meeting: channel.Meeting) -> bytes:
        """What the spare says, b"" where it has ended without a word; leaves when the host goes meanwhile."""
        poll = select.poll()
        poll.register(meeting.here, select.POLLIN)
        poll.register(self.connection, HANG_UP)
        if meeting.listener is not None:
            poll.register(meeting.listener, select.POLLIN)
        if end >= 0:
            poll.register(end, select.POLLIN)
        here, door = meeting.here.fileno(), -1 if meeting.listener is None else meeting.listener.fileno()
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(None if end >= 0 else LOOK_EVERY_MS)]
            if self.connection.fileno() in ready:
                self._leave()
            if here in ready:
                return channel.hear(meeting.here, WORDS_BYTES)
            if door in ready:
                poll.unregister(door)
                meeting.admit(child)
                if meeting.listener is not None:  # it was somebody else
                    poll.register(door, select.POLLIN)
            elif end in ready or (end < 0 and _has_ended(child)):
                return b""

    def _note_scan(self, word: bytes) -> None:
        """Remember what the sources say: they are read once."""
        _, *flags = word.split()
        if flags and self.held.scan is None:
            self.held.scan = source.Scan(*(flag != b"0" for flag in flags))

    def _watched(self, child: int) -> int:
        """A descriptor that tells of the child's end; -1 on an old kernel, or where a profile forbids it."""
        try:
            return os.pidfd_open(child)
        except (AttributeError, OSError):
            return -1

    def _see_through(self, child: int, end: int) -> tuple[int, int]:
        """Wait for the child's end, or bring it about where the host hangs up; then end all that it started.

        Its wait status, and how many had to be killed.
        """
        poll = select.poll()
        poll.register(self.connection, HANG_UP)
        if end >= 0:
            poll.register(end, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(None if end >= 0 else LOOK_EVERY_MS)]
            if self.connection.fileno() in ready:
                self.hung_up = True
                break
            if end in ready or (end < 0 and _has_ended(child)):
                break
        _kill_all()  # before its end is asked for: whoever traces it is told first, and need not ever hear of it
        _, status = os.waitpid(child, 0)
        return status, _end_all()

    def _account_of(self, pair: _socket.socket, ended_ns: int) -> tuple[bytes, int, bytes]:
        """How the run was started, when, and what the spare wishes for the next one; b"" where it had no request.

        It may have been ended before it could say all that. By now it knows a request, and the function's packages may have
        changed what it does: so no more of its words are read here than these few bytes, and a wish stays where it is.
        """
        how, started_ns = b"", ended_ns
        while True:
            try:
                word = pair.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
                if word == spare.TOOK:
                    how = b"exec"
                    started_ns = min(int.from_bytes(pair.recv(1 + spare.TIME_BYTES)[1:], "little"), ended_ns)
                elif word == spare.PYTHON:
                    return b"python", started_ns, b""
                elif word == b"b":
                    self._give_up(channel.hear(pair, WORDS_BYTES))
                else:
                    return how, started_ns, word
            except (BlockingIOError, ConnectionError):
                return how, started_ns, b""

    def _open_result(self) -> int:
        """A descriptor of what the run has written for the host; -1 where that is nothing.

        It is not read here. This process may not enter the folder: it looks there as the function's user.
        """
        os.seteuid(self.held.uid)
        try:
            file = os.open(places.RESULT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return -1
        finally:
            os.seteuid(0)
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return file
        os.close(file)
        return -1

    # -- what a run teaches

    def _learn_imports(self) -> None:
        """Import beforehand what the run has imported, as far as it is the standard library's."""
        learned = lesson.Lesson(self._ask(spare.read_lesson))
        new = self.held.packages.learn(learned)
        self.held.imports.beginning = frozenset(self.held.packages.beginning)
        if self.held.bytecode.learn(learned.own):
            self._compile()
        self.lessons += 1
        if not (learned.standard or new or learned.own) or self.lessons >= lesson.LESSONS_LIMIT:
            self.held.learn = False
        if learned.standard:
            self._import_beforehand(learned.standard)
            spare.warm_up()
            self.rehearsed = False

    def _compile(self) -> None:
        """Let a child compile the function's own modules, into a memory file that every spare inherits."""
        compiled = self.held.bytecode
        if compiled.file >= 0:
            os.close(compiled.file)
        compiled.file = os.memfd_create("bytecode", os.MFD_CLOEXEC)
        self._ask(spare.compile_own)

    def _import_beforehand(self, standard: Iterable[str]) -> None:
        """Import modules and hide them. One that cannot be imported here ends all that."""
        hidden = self.held.imports
        hidden.show_all()
        try:
            done = []
            for name in standard:
                if lesson.is_standard(name) and name not in sys.modules:
                    hidden.load(name, {})
                    done.append(name)
            spare.put_beginnings(self.held)
            hidden.hide(self.held.known, done)
        except BaseException:  # noqa: BLE001  # whatever a module does when it is imported
            hidden.hide(self.held.known)
            hidden.forget()
            self.held.learn = False

    # -- another interpreter

    def _heed_code(self) -> None:
        """Start anew when the code is not what it was: nothing that was learned from one piece of code is for another."""
        try:
            status = os.stat(places.CODE)
        except OSError:
            return
        code = (status.st_dev, status.st_ino)
        if self.code not in (None, code):
            self._become({**self.state, **self.state["fresh"], "changes": 1, "rehearsed": True})
        self.code = code

    def _grant(self, wish: bytes, pair: _socket.socket) -> None:
        """Do what the spare wishes for the next run, so far as it is one of the things that can be wished for."""
        if wish == spare.WORDS:
            packages = self.held.packages
            packages.forget_words()
            packages.file = os.memfd_create("words", os.MFD_CLOEXEC)
            self._ask(spare.collect_words)
        elif wish == spare.ANEW:
            self.held.packages.forget()
            self.held.imports.beginning = frozenset()
            self.held.learn = self.state["learn"] and self.lessons < lesson.LESSONS_LIMIT
        elif wish == spare.HELD and self.state["changes"] < CHANGES_LIMIT:
            held = self.held
            wanted = held.wanted(self._ask(lambda answer, held: spare.read_wish(answer, held, pair)))
            if wanted is not None:
                self._become(
                    {
                        **self.state,
                        **wanted,
                        "changes": self.state["changes"] + 1,
                        "rehearsed": False,
                        "standard": list(held.imports.roots),
                        "own": held.bytecode.paths,
                        "scan": held.scan and (held.scan.curious, held.scan.ctypes),
                    }
                )

    def _become(self, state: dict[str, Any]) -> None:
        """Become another interpreter, when nothing that a run has left is there any more."""
        words = self._ask(spare.tidy)
        if words != b"clean":
            self._give_up(words[:WORDS_BYTES] or b"unclean what a run has left could not be removed")
        begin.become(state)

    # -- the end

    def _give_up(self, words: bytes) -> NoReturn:
        channel.send(self.connection, words)
        self._leave()

    def _leave(self) -> NoReturn:
        _end_all()
        os._exit(0)


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


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


def _fail(error: BaseException) -> NoReturn:
    """End a child that cannot do what it is for, and say why where it is heard: in the run's stderr, if there is a run."""
    os.write(2, spare.words(b"nanogrid: the run's process failed before the function's code:", error) + b"\n")
    os._exit(FAILED)


def _leave(_number: int, _frame: object) -> NoReturn:
    os._exit(0)
