"""The first process: keeps one spare child ready, gives it a request, ends what the run leaves, and tells the host.

The rule: the host hears `ended` only when nothing of the run lives any more, and `ready` only from a spare that has nothing
left to do but run. The function's user can neither signal, trace nor imitate this process, and never holds its connection.
"""

import _signal
import errno
import marshal
import os
import select
import stat
import sys
import time

from nanogrid_warm import begin, channel, lesson, source, spare

CODE = "/nanogrid/code"
FORK_ATTEMPTS = 100
FORK_WAIT_S = 0.01
CHANGES_LIMIT = 8
"""How often the held interpreter may become another one: a function whose requests alternate is not to pay for it each time."""
WORDS_BYTES = 500


def prepare(file, modules):
    """Read what the process before has left in `file`; a function that holds this interpreter and serves the host.

    `modules` are those of a new interpreter.

    That function returns in a child only, in the process that is to go on as Python does.
    """
    state = marshal.loads(os.pread(file, os.fstat(file).st_size, 0))
    os.close(file)
    server = Server(state)
    server.held.leave.install()
    server.held.known = server.held.packages.known = frozenset(modules)
    return server.serve


class Server:
    """The first process's own state: its connection, and how the interpreter that it holds was started."""

    def __init__(self, state):
        self.state = state
        self.connection = channel.open_descriptor(state["control"])
        os.set_inheritable(state["control"], False)
        self.held = spare.Held(state)
        self.lessons = 0
        self.rehearsed = False
        self.request = None
        self.kinds = ()
        self.code = None

    def serve(self):
        """Serve the host until it is gone. Returns in the child that runs a request in this interpreter."""
        _signal.signal(_signal.SIGTERM, _leave)
        if not self.state["changes"]:
            channel.send(self.connection, b"hello " + ".".join(map(str, sys.version_info[:3])).encode())
        if self.state["standard"]:
            self._import_beforehand(self.state["standard"])
        spare.warm_up()
        while True:
            self._heed_code()
            here, there = channel.pair()
            child = self._fork()
            if child == 0:
                here.close()
                self.connection.close()
                (spare.live if self.rehearsed else spare.rehearse)(there, self.held)
                return
            there.close()
            if self.rehearsed:
                self._tend(child, here)
            else:
                self._learn_memory(here)
            here.close()

    def _learn_memory(self, pair):
        """Read what the rehearsal tells: lines of address and size."""
        text, _ = channel.receive(pair)
        _end_all()
        self.rehearsed = True
        self.held.hot = [tuple(int(number, 16) for number in line.split()) for line in text.split(b"\n")[:-1]]

    def _fork(self):
        for _ in range(FORK_ATTEMPTS):
            try:
                return os.fork()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                    raise
                time.sleep(FORK_WAIT_S)
        self._give_up(b"broken the next process could not be started")
        return None

    def _tend(self, child, pair):
        """One spare's life: announce it, hand it a request, see the run to its end and report it."""
        word = self._await_spare(pair)
        if word.startswith(b"ready"):
            self._note_scan(word)
            channel.send(self.connection, b"ready")
        elif word == b"again":
            self.held.packages.forget()
            _end_all()
            return
        else:
            _end_all()
            self._give_up(word or b"broken the next process ended before it was ready")
        if not self._hand_over(pair):
            _end_all()
            return
        status, killed = self._see_through(child)
        ended_ns = time.monotonic_ns()
        answer = _answer(pair)
        if answer.startswith(b"broken"):
            self._give_up(answer)
        how, _, started_ns = answer.partition(b" ")
        channel.send(
            self.connection,
            b"ended %d %s %s %d %d" % (status, how or b"exec", started_ns or b"%d" % ended_ns, ended_ns, killed),
        )

        if how == b"python":
            if self.held.learn:
                self._learn_imports()
        elif self.request["in_process"]:
            self._change()

    def _note_scan(self, word):
        """Remember what the sources say: they are read once."""
        _, *flags = word.split()
        if flags and self.held.scan is None:
            self.held.scan = source.Scan(*(flag != b"0" for flag in flags))

    def _learn_imports(self):
        """Import beforehand what the run has imported, as far as it is the standard library's."""
        standard, packages = lesson.read(self.held.uid)
        self.lessons += 1
        if not (standard or packages) or self.lessons >= lesson.LESSONS_LIMIT:
            self.held.learn = False
        self.held.packages.learn(packages, self._environment())
        if standard:
            self._import_beforehand(standard)
            spare.warm_up()
            self.rehearsed = False

    def _environment(self):
        return {**self.state["env"], **self.request["env"]}

    def _import_beforehand(self, standard):
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

    def _heed_code(self):
        """Start anew when the code is not what it was: nothing that was learned from one piece of code is for another."""
        try:
            status = os.stat(CODE)
        except OSError:
            return
        code = (status.st_dev, status.st_ino)
        if self.code not in (None, code):
            begin.become({**self.state, **self.state["fresh"], "changes": 1})
        self.code = code

    def _change(self):
        """Become the interpreter that the request has asked for, where the one that is held was another one."""
        env = self._environment()
        wanted = {"command": self.request["argv"], "special": begin.special(env), "kinds": self.kinds}
        if (
            wanted == {name: self.state[name] for name in wanted}
            or self.state["changes"] >= CHANGES_LIMIT
            or len(wanted["command"]) < 2
            or wanted["command"][1].startswith("-")
            or not begin.may_hold(self.state["env"], wanted["special"])
        ):
            return
        held = self.held
        begin.become(
            {
                **self.state,
                **wanted,
                "changes": self.state["changes"] + 1,
                "standard": [name for name in held.imports.roots],
                "packages": (held.packages.names, held.packages.env),
                "scan": held.scan and (held.scan.curious, held.scan.ctypes),
            }
        )

    def _await_spare(self, pair):
        """What the spare says; leaves when the host goes meanwhile."""
        poll = select.poll()
        poll.register(pair, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if pair.fileno() in ready:
                return channel.receive(pair)[0][:WORDS_BYTES]
            self._heed()

    def _hand_over(self, pair):
        """Wait for a request and pass it on. False when the spare is gone before one came."""
        poll = select.poll()
        poll.register(pair, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self.connection.fileno() not in ready:
                return False
            packet, descriptors = channel.receive(self.connection)
            if not packet:
                self._leave()
            try:
                if len(descriptors) >= channel.STREAMS:
                    sent = channel.send(pair, packet, descriptors)
                    self.request = channel.message(packet, descriptors)
                    self.kinds = tuple(
                        stat.S_IFMT(os.fstat(number).st_mode) for number in descriptors[: channel.STREAMS]
                    )
                    return sent
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _see_through(self, child):
        """Wait for the child's end, then end all that it started: its wait status, and how many had to be killed."""
        process = os.pidfd_open(child)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if process in ready:
                break
            self._heed()
        os.close(process)
        _, status = os.waitpid(child, 0)
        return status, _end_all()

    def _heed(self):
        """Whatever the host says while there is a run ends the run; its silence for good ends all."""
        packet, descriptors = channel.receive(self.connection)
        for descriptor in descriptors:
            os.close(descriptor)
        if not packet:
            self._leave()
        _kill_all()

    def _give_up(self, words):
        channel.send(self.connection, words)
        self._leave()

    def _leave(self):
        _end_all()
        os._exit(0)


def _answer(pair):
    """What the child said of its request before it ran it; b"" where it did not come so far."""
    pair.setblocking(False)
    try:
        return channel.receive(pair)[0][:WORDS_BYTES]
    except BlockingIOError:
        return b""


def _kill_all():
    """Kill every process in this container but this one."""
    try:
        os.kill(-1, _signal.SIGKILL)
    except ProcessLookupError:
        pass


def _end_all():
    """Kill and reap until nobody is left. How many there were that had not ended by themselves."""
    _kill_all()
    killed = 0
    while True:
        try:
            _, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return killed
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == _signal.SIGKILL


def _leave(_number, _frame):
    os._exit(0)
