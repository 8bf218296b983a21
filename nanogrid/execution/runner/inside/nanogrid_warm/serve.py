"""The first process (PID 1, the runner): keeps one spare ready, ends everything a run leaves, and reports to the host.

The rules:

- The host receives `ended` only after every process of the run is dead, and `ready` only from a spare that has nothing left to do but run.
- The function's user can neither signal, trace nor imitate this process. No other process ever holds its connection to the host.
- Every run is a fork of this process, so this process never reads what a run received or wrote. Requests go from the host to the spare,
  results go to the host as a descriptor, and from its children this process accepts only words from fixed sets.

The life of runner, spare and run. Time goes down; `══` is `exec`, `──` is `fork`. "user" is the function's user.

    host                          container
    ────                          ─────────
    starts the container          python3 /nanogrid/runner            root   `__main__.py` connects to control.sock
                                   ║ exec, with a State in a memory file (`reexec.py`)
    ◄── hello ─────────────────── runner: python main.py, held        root   `boot/sitecustomize.py` calls `prepare`, then `serve`
                                   │
                                   ├── rehearsal                      user   once per interpreter: runs an empty program, sends
                                   │                                         the pages that it wrote over `spare_end`, exits
                                   │
                                   ├── spare                          user   empties the writable folders, copies the code, imports
                                   │    │                                    packages, sends `ready` over `spare_end` (`spare.py`)
    ◄── ready, `host_end` ─────────┤    │
    ─── request, descriptors ──────────►│ `request_end`                      sends `T` and `P` or a hint over `spare_end`, and closes it
                                   │   run                            user   the same process. Either `serve` returns in it and Python
                                   │    ║                                    opens main.py, or it executes the command
                                   │    ✕                                    ends by itself, or the host hangs up
                                   ├─◄ pidfd                                 `kill(-1)`, and every process is reaped
    ◄── ended, result's descriptor ┤
                                   ├── one-shot children              user   one at a time, each with a socket pair: read the import
                                   │                                         report, compile, collect words, check a hint, clean up;
                                   │                                         each sends one packet and exits
                                   │
                                   ├── the next spare                 user   or, for another interpreter:
                                   ║ exec, with a new State           root   after a one-shot child has cleaned up
    closes its connection ────────►✕                                         kills everything and exits; the container ends

With packages to import in advance there is one more process, the template (`template.py`), also of the user. It imports them and is then forked for each spare: the
runner sends it `fork` with the spare's two ends, and it answers `forked PID` and, when the run has ended, `ended STATUS`. It outlives runs that leave no process behind. With
packages among the code, one-shot children also lay out the workspace and put right what a run has changed in it (`kept.py`).

A spare shares two socket pairs (`channel.SpareConnections`): `spare_end` to `runner_end` for its few words to the runner, and `request_end` to
`host_end`, which the host receives with `ready`, for the one request. Both end with the run.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH116, PTH208, SIM105
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _signal
import _socket
import os
import select
import stat
import sys
import time

from nanogrid_warm import channel, import_report, kept, kernel, paths, reexec, source_scan, spare, template, vendored

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

FAILED = 70
POLL_MS = 1
KEPT_DESCRIPTORS = 2
TEMPLATE_SOCKETS = 2
REEXECS_LIMIT = 8
"""How often another interpreter may be started. A function whose requests alternate must not pay for one each time."""
WORDS_BYTES = 500
HANG_UP = select.POLLRDHUP
"""The host will send nothing more: it is gone, or it wants the run to end."""


def prepare(fields: dict[str, Any], modules: Iterable[str], faithful: bool) -> Callable[[], None]:
    """Return the function that holds this interpreter and serves the host.

    `fields` are those of the `State` that the process before `exec` has written. `modules` are the modules of a fresh interpreter. If not `faithful`, this interpreter differs from a fresh one, and each run executes
    its command.

    The returned function returns only in a child, in the process that continues Python's own start.
    """
    state = reexec.State(**fields)
    os.chdir("/")  # Python has started in the workspace, and this process must not stay there
    server = Server(state)
    if not faithful:
        server.held.program = None
    server.held.fast_exit.install()
    server.held.known_modules = server.held.packages.known_modules = frozenset(modules)
    return server.serve


class Server:
    """The runner's own state: its connection, and what it knows of the interpreter that it holds."""

    def __init__(self, state: reexec.State) -> None:
        self.state = state
        self.connection = channel.open_descriptor(state.host_descriptor)
        os.set_inheritable(state.host_descriptor, False)
        self.held = spare.HeldInterpreter(state)
        self.reports = 0
        """How many import reports were read."""
        self.rehearsed: bool = state.rehearsed
        self.hung_up = False
        self.code: tuple[int, int] | None = None
        """Device and inode of the code's folder."""
        self.keeps = False
        """Whether to keep the workspace between runs."""
        self.template: template.Template | None = None
        """The process that has imported the function's packages, if there is one."""
        self.uses_template = True
        """Whether there may be one: not if importing the packages leaves something that no fork may share."""

    def serve(self) -> None:
        """Serve the host until it hangs up. Returns only in the child that runs a request in this interpreter."""
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001  # the host must receive the reason, whatever it is
            self._give_up(spare.error_line(b"broken the runner failed:", error))

    def _serve(self) -> None:
        _signal.signal(_signal.SIGTERM, _on_sigterm)
        if not self.state.reexecs:
            channel.send(self.connection, b"hello " + ".".join(map(str, sys.version_info[:3])).encode())
        if self.state.standard_modules:
            self._import_hidden(self.state.standard_modules)
        if self.state.own_sources:
            self._compile()
        spare.warm_up()
        while True:
            self._restart_if_code_changed()
            if self.keeps:
                self._keep_workspace()
            if self._needs_template():
                handover = self._start_template()
                if handover is not None:
                    connections = self._be_template(handover)
                    self._be_child(connections)
                    return
                if self.keeps:  # the import may have written compiled code
                    self._keep_workspace()
            connections = channel.SpareConnections(
                deferred=self.rehearsed and bool(self.held.packages.names) and self.template is None
            )
            child = self._fork() if self.template is None else self._fork_template(connections)
            if child == 0 and self.template is None:
                self.connection.close()
                connections.close_runner_ends()
                self._be_child(connections)
                return
            connections.close_spare_ends()
            if child == 0:
                self._end_template()
            elif self.rehearsed:
                self._serve_one_run(child, connections)
            else:
                self._learn_pages(connections.runner_end)
            connections.close()

    # -- the workspace

    def _keep_workspace(self) -> None:
        """Have a one-shot child put right what the last run has changed in the workspace, or lay it out."""
        try:
            # An open file in a message that nobody has received is closed with its socket.
            own = TEMPLATE_SOCKETS if self.template is not None else 0
            if self.held.network is not None:
                self.held.network.await_no_sockets(self.state.sockets + own)
        except OSError:  # as long as such a file may be open, reports may be missing: copy the code for each run
            self.keeps = False
            self._drop_kept()
            return
        if self.held.kept is not None and (not self._has_reports() or self._run_in_child(spare.repair_kept) == b"kept"):
            return
        self._end_template()  # it would keep the old files in memory
        self._drop_kept()
        descriptors: list[int] = []
        self._run_in_child(spare.lay_out_kept, descriptors)
        if len(descriptors) == KEPT_DESCRIPTORS:
            self.held.kept = kept.KeptWorkspace(*descriptors)
        else:
            self.keeps = False

    def _drop_kept(self) -> None:
        """Forget what is known of the workspace."""
        if self.held.kept is not None:
            self.held.kept.close()
            self.held.kept = None

    def _has_reports(self) -> bool:
        """Return whether the last run has changed anything in the workspace."""
        assert self.held.kept is not None
        poll = select.poll()
        poll.register(self.held.kept.reports, select.POLLIN)
        return bool(poll.poll(0))

    # -- the template

    def _needs_template(self) -> bool:
        return self.uses_template and self.rehearsed and bool(self.held.packages.names) and self.template is None

    def _start_template(self) -> channel.Handover | None:
        """Start the template. Returns None in this process, and in the template what it must fetch once it has imported the packages."""
        runner_end, template_end = channel.pair()
        handover = channel.Handover((template_end,))
        child = self._fork()
        if child == 0:
            self.connection.close()
            runner_end.close()
            handover.close_in_child()
            return handover
        pidfd = self._open_pidfd(child)
        word = b""
        if pidfd >= 0:
            word = self._await_word(runner_end, handover, child, pidfd)
        for one in (handover.listener, template_end):
            one.close()
        if word == b"ready":
            self.held.packages.checked = True
            self.template = template.Template(child, pidfd, runner_end)
            return None
        self._give_up_template(child, pidfd, runner_end)
        return None

    def _fork_template(self, connections: channel.SpareConnections) -> int:
        """Have the template forked, if the last run has left nothing in the kernel's network tables."""
        assert self.template is not None
        try:
            if self.held.network is not None:
                self.held.network.require_nothing_left()
        except OSError as error:
            self._give_up(spare.error_line(b"unclean", error))
        return self.template.fork(connections)

    def _give_up_template(self, child: int, pidfd: int, runner_end: _socket.socket) -> None:
        """Use no template for these packages, and no import in advance if the import itself failed."""
        _kill_all()
        _, status = os.waitpid(child, 0)
        _end_all()
        runner_end.close()
        if pidfd >= 0:
            os.close(pidfd)
            if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == template.UNFIT):
                self.held.packages.reject()
        self.uses_template = False
        if self.held.packages.names:  # each spare imports them, and what they write meanwhile must be removed
            self.keeps = False
            self._drop_kept()

    def _be_template(self, handover: channel.Handover) -> channel.ReceivedConnections:
        """Do the template's whole work. Returns only in its forks."""
        try:
            return spare.become_template(handover, self.held)
        except BaseException as error:  # noqa: BLE001
            _fail(error)

    def _end_template(self) -> None:
        """End the template. The next spare gets another one."""
        if self.template is not None:
            self._drop_template()
            _end_all()

    def _drop_template(self) -> None:
        """Forget the template, which is killed with everything else."""
        if self.template is not None:
            self.template.close()
            self.template = None

    def _reap_one_shot(self, child: int) -> None:
        """Reap a one-shot child. It runs no code of the function, so it leaves nothing."""
        os.waitpid(child, 0)
        if self.template is None:
            _end_all()

    def _be_child(self, connections: channel.SpareConnections | channel.ReceivedConnections) -> None:
        """Do the child's whole work. An error before the function's code is an error of the platform."""
        try:
            if self.rehearsed:
                spare.run_spare(connections, self.held)
            else:
                spare.rehearse(connections.spare_end, self.held)
        except BaseException as error:  # noqa: BLE001
            if connections.spare_end.fileno() >= 0:
                channel.send(connections.spare_end, spare.error_line(b"broken", error))
            _fail(error)

    def _learn_pages(self, runner_end: _socket.socket) -> None:
        """Read the rehearsal's report: lines of address and size."""
        text = channel.receive_bytes(runner_end)
        _end_all()
        self.rehearsed = True
        self.held.hot_pages = [
            kernel.populate_arguments(*(int(number, 16) for number in line.split())) for line in text.split(b"\n")[:-1]
        ]

    def _fork(self) -> int:
        try:
            return kernel.fork()
        except OSError:
            self._give_up(b"broken a child process could not be started")

    def _run_in_child(
        self, work: Callable[[_socket.socket, spare.HeldInterpreter], object], descriptors: list[int] | None = None
    ) -> bytes:
        """Run `work` in a child of its own and return the packet that it sends; b"" if it ends without one.

        Descriptors that come with it are added to `descriptors`. Without such a list the kernel closes them.
        """
        here, there = channel.pair()
        child = self._fork()
        if child == 0:
            here.close()
            self.connection.close()
            try:
                work(there, self.held)
            except BaseException as error:  # noqa: BLE001
                _fail(error)
            finally:
                os._exit(FAILED)
        there.close()
        if descriptors is None:
            answer = channel.receive_bytes(here)
        else:
            answer, received = channel.receive(here)
            descriptors += received
        here.close()
        self._reap_one_shot(child)
        return answer

    # -- one spare

    def _serve_one_run(self, child: int, connections: channel.SpareConnections) -> None:
        """Announce one spare, wait for the end of its run and report it."""
        pidfd = self._open_pidfd(child)  # before the announcement: a runner that is ready opens nothing more
        try:
            if not self._announce(child, pidfd, connections):
                return
            status, killed = self._await_end(child, pidfd)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        ended_ns = time.monotonic_ns()
        how, started_ns, hint = self._read_words(connections.runner_end, ended_ns)
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
            self._exit()
        if not how:  # it ended before a request came
            return
        os.sched_yield()  # the host may have been woken on this very processor, and the rest takes a while
        self.held.copies_pages = how == b"python"
        if how == b"python":
            if self.held.learn_imports:
                self._learn_imports()
        elif hint:
            self._follow_hint(hint, connections.runner_end)

    def _announce(self, child: int, pidfd: int, connections: channel.SpareConnections) -> bool:
        """Tell the host that the spare is ready. False: fork another spare, without the packages that this one could not import."""
        word = self._await_spare(child, pidfd, connections)
        if word.startswith(b"ready"):
            self._store_scan(word)
            self.held.packages.checked = True
            connections.announce(b"ready", self.connection)
            return True
        is_fork = self.template is not None
        self._drop_template()
        _end_all()
        if not word and is_fork:  # the template was killed in the meantime: the next spare gets another one
            return False
        if not word and self.held.packages.names:
            self.held.packages.reject()
            return False
        self._give_up(word or b"broken the spare ended before it was ready")
        return False

    def _await_spare(self, child: int, pidfd: int, connections: channel.SpareConnections) -> bytes:
        """Return the spare's first word, b"" if it ends without one. Exits if the host hangs up meanwhile."""
        word = self._await_word(connections.runner_end, connections.handover, child, pidfd)
        if connections.handover is not None:
            connections.handover.listener.close()
            connections.handover = None
        return word

    def _await_word(
        self, runner_end: _socket.socket, handover: channel.Handover | None, child: int, pidfd: int
    ) -> bytes:
        """Return the first word of a child, b"" if it ends without one. Hand over what it fetches. Exits if the host hangs up meanwhile."""
        poll = select.poll()
        poll.register(runner_end, select.POLLIN)
        poll.register(self.connection, HANG_UP)
        if handover is not None:
            poll.register(handover.listener, select.POLLIN)
        if pidfd >= 0:
            poll.register(pidfd, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(None if pidfd >= 0 else POLL_MS)]
            if self.connection.fileno() in ready:
                self._exit()
            if runner_end.fileno() in ready:
                return channel.receive_bytes(runner_end, WORDS_BYTES)
            if handover is not None and handover.listener.fileno() in ready:
                if handover.admit(child):
                    poll.unregister(handover.listener)
            elif pidfd in ready or (pidfd < 0 and _has_ended(child)):
                return b""

    def _store_scan(self, word: bytes) -> None:
        """Keep what the spare found in the sources: they are read once."""
        _, *flags = word.split()
        if flags and self.held.scan is None:
            self.held.scan = source_scan.SourceScan(*(flag != b"0" for flag in flags))

    def _open_pidfd(self, child: int) -> int:
        """Return a descriptor that becomes readable at the child's end; -1 on an old kernel, or if a seccomp profile forbids it."""
        try:
            return os.pidfd_open(child)
        except (AttributeError, OSError):
            return -1

    def _await_end(self, child: int, pidfd: int) -> tuple[int, int]:
        """Wait for the child's end, or kill it if the host hangs up; then end everything that it started.

        Returns its wait status, and how many processes were killed.
        """
        poll = select.poll()
        poll.register(self.connection, HANG_UP)
        if pidfd >= 0:
            poll.register(pidfd, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(None if pidfd >= 0 else POLL_MS)]
            if self.connection.fileno() in ready:
                self.hung_up = True
                break
            if pidfd in ready or (pidfd < 0 and _has_ended(child)):
                break
        if self.template is not None:
            return self._end_fork(child)
        _kill_all()  # before `waitpid`: a tracer of the child learns of its end first, and need not pass it on
        _, status = os.waitpid(child, 0)
        return status, _end_all()

    def _end_fork(self, child: int) -> tuple[int, int]:
        """End the run of a spare that was forked from the template. Returns as `_await_end` does.

        The template stays if the run has ended, has left nothing and has done nothing to the template. If not, everything is killed.
        """
        own = self.template
        assert own is not None
        expected = {1, own.pid}
        status = -1
        if not self.hung_up and own.is_untouched() and not _alive(own.pid) - expected - {child}:
            status = own.end_status()
            if status >= 0 and not _alive(own.pid) - expected - {child}:
                return status, 0
        _kill_all()
        statuses = _reap_all()
        self.template = None
        if status < 0:  # if the template has not reaped it, it became a child of this process at the template's end
            status = statuses.pop(child, -1)
        if status < 0:
            status = own.end_status()
        own.close()
        killed = _count_killed([end for process, end in statuses.items() if process != own.pid])
        return status if status >= 0 else int(_signal.SIGKILL), killed

    def _read_words(self, runner_end: _socket.socket, ended_ns: int) -> tuple[bytes, int, bytes]:
        """Return how the run was started, when, and the first byte of the spare's hint; b"" first if it never had a request.

        The spare may have ended before it could send all of that. Once it knows a request, the function's packages may have changed what
        it sends: so only these few bytes are read here, and the rest of a hint stays in the socket.
        """
        how, started_ns = b"", ended_ns
        while True:
            try:
                word = runner_end.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
                if word == spare.RECEIVED:
                    how = b"exec"
                    started_ns = min(int.from_bytes(runner_end.recv(1 + spare.TIME_BYTES)[1:], "little"), ended_ns)
                elif word == spare.IN_PROCESS:
                    return b"python", started_ns, b""
                elif word == b"b":
                    self._give_up(channel.receive_bytes(runner_end, WORDS_BYTES))
                else:
                    return how, started_ns, word
            except (BlockingIOError, ConnectionError):
                return how, started_ns, b""

    def _open_result(self) -> int:
        """Return a descriptor of the result file for the host; -1 if there is no result.

        The file is not read here. Root may not enter the folder, so it is opened with the function's user as effective user.
        """
        os.seteuid(self.held.uid)
        try:
            file = os.open(paths.RESULT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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
        """Import in advance what the run has imported of the standard library, and compile its own modules."""
        report = import_report.ImportReport(self._run_in_child(spare.read_import_report))
        new = self.held.packages.learn(report)
        if new:
            self._end_template()
            self.uses_template = True
        self.held.imports.prologue = frozenset(self.held.packages.prologue)
        if self.held.bytecode.learn(report.own_sources):
            self._compile()
        self.reports += 1
        if not (report.standard or new or report.own_sources) or self.reports >= import_report.REPORTS_LIMIT:
            self.held.learn_imports = False
        hidden = self.held.imports.hidden
        standard = [name for name in report.standard if name not in hidden and name not in sys.modules]
        if standard:
            self._end_template()
            self._import_hidden(standard)
            spare.warm_up()
            self.rehearsed = False

    def _compile(self) -> None:
        """Have a one-shot child compile the function's own modules into a memory file that every spare inherits."""
        self._end_template()
        bytecode = self.held.bytecode
        if bytecode.file >= 0:
            os.close(bytecode.file)
        bytecode.file = os.memfd_create("bytecode", os.MFD_CLOEXEC)
        self._run_in_child(spare.compile_sources)

    def _import_hidden(self, names: Iterable[str]) -> None:
        """Import modules of the standard library and hide them. If one fails here, none is imported in advance any more."""
        hidden = self.held.imports
        hidden.reveal_all()
        try:
            done = []
            for name in names:
                if import_report.is_standard(name) and name not in sys.modules:
                    hidden.load(name, {})
                    done.append(name)
            spare.renew_import_state(self.held)
            hidden.hide(self.held.known_modules, done)
        except BaseException:  # noqa: BLE001  # an import can raise anything
            hidden.hide(self.held.known_modules)
            hidden.forget()
            self.held.learn_imports = False

    # -- another interpreter

    def _restart_if_code_changed(self) -> None:
        """Start a new interpreter if the code has changed: what one piece of code has taught must not serve another."""
        try:
            status = os.stat(paths.CODE)
        except OSError:
            return
        code = (status.st_dev, status.st_ino)
        if self.code not in (None, code):
            self._reexec(self.state.for_new_code())
        if self.code is None and vendored.are_there():
            vendored.use(self._run_in_child(spare.find_vendored))
            self.keeps = self.state.filtered and self.held.network is not None
        self.code = code

    def _follow_hint(self, hint: bytes, runner_end: _socket.socket) -> None:
        """Do what the spare suggests for the next run, if it is one of the three known hints."""
        if hint in (spare.HINT_WORDS, spare.HINT_RELEARN):
            self._end_template()
        if hint == spare.HINT_WORDS:
            packages = self.held.packages
            packages.drop_words()
            packages.file = os.memfd_create("words", os.MFD_CLOEXEC)
            self._run_in_child(spare.collect_words)
        elif hint == spare.HINT_RELEARN:
            self.held.packages.forget()
            self.held.imports.prologue = frozenset()
            self.held.learn_imports = self.state.learn_imports and self.reports < import_report.REPORTS_LIMIT
        elif hint == spare.HINT_INTERPRETER and self.state.reexecs < REEXECS_LIMIT:
            answer = self._run_in_child(lambda answer, held: spare.check_hint(answer, held, runner_end))
            changes = self.held.parse_hint(answer)
            if changes is not None:
                scan = self.held.scan
                self._reexec(
                    self.state.replace(
                        **changes,
                        reexecs=self.state.reexecs + 1,
                        rehearsed=False,
                        standard_modules=list(self.held.imports.roots),
                        own_sources=self.held.bytecode.paths,
                        scan=scan and (scan.introspects, scan.uses_ctypes),
                    )
                )

    def _reexec(self, state: reexec.State) -> None:
        """Become another interpreter, after a one-shot child has removed everything that a run left."""
        self._end_template()
        answer = self._run_in_child(spare.clean_up)
        if answer != b"clean":
            self._give_up(answer[:WORDS_BYTES] or b"unclean the run's files could not be removed")
        reexec.exec_interpreter(state)

    # -- the end

    def _give_up(self, words: bytes) -> NoReturn:
        channel.send(self.connection, words)
        self._exit()

    def _exit(self) -> NoReturn:
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
    """Kill and reap until no process is left. Returns how many had not ended by themselves."""
    _kill_all()
    return _count_killed(_reap_all().values())


def _reap_all() -> dict[int, int]:
    """Wait for the end of every process. Returns their wait statuses by pid."""
    statuses: dict[int, int] = {}
    while True:
        try:
            process, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return statuses
        statuses[process] = status


def _count_killed(statuses: Iterable[int]) -> int:
    return sum(os.WIFSIGNALED(status) and os.WTERMSIG(status) == _signal.SIGKILL for status in statuses)


def _alive(template_pid: int) -> set[int]:
    """Return the container's processes, after reaping orphans that have ended. The template is not reaped here."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None or ended.si_pid == template_pid:
            break
        os.waitpid(ended.si_pid, 0)
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _fail(error: BaseException) -> NoReturn:
    """End a child that cannot do its work, with the reason on stderr: the run's stderr, if there is a run."""
    os.write(2, spare.error_line(b"nanogrid: the run's process failed before the function's code:", error) + b"\n")
    os._exit(FAILED)


def _on_sigterm(_number: int, _frame: object) -> NoReturn:
    os._exit(0)
