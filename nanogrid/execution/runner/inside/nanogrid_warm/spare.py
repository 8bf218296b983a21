"""The spare: a child that does everything a run needs before its request comes, as the function's user.

The rule: from `drop_privileges` on it is the function's user, for good. It holds two connections of its own: over one it sends a few words to
the first process, over the other the host sends the request of one run. If packages of the function were imported in the spare, its
code may hold these connections too, so the host and the runner trust the spare no more than a run of that code.

This module also has the work of the one-shot children: each does one thing with what a run has left, sends one packet and exits.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH110, PTH112, PTH120, S606
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
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
    bytecode,
    channel,
    fast_exit,
    import_report,
    import_watch,
    imports,
    kept,
    kernel,
    memory,
    packages,
    paths,
    reexec,
    source_scan,
    template,
    vendored,
    workspace,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    import _socket
    from collections.abc import Sequence
    from typing import Any, NoReturn

OOM_FIRST = b"1000"
SHELL = "/bin/sh"
REHEARSALS = 3
SCRIPT = 2
"""The number of words in a command that select the program. Its arguments follow."""

RECEIVED, IN_PROCESS = b"T", b"P"
"""The spare's words once it has its request: that it has one (with the time), and that it continues in the held interpreter."""
TIME_BYTES = 8

HINT_WORDS, HINT_INTERPRETER, HINT_RELEARN = b"W", b"H", b"A"
"""The spare's hints, how the next run like this one could use the held interpreter: collect the words in the packages' compiled modules,
start another interpreter (which one follows), or learn the program's prologue again."""

KEY_BYTES = 32
VARIABLES_LIMIT = 1000
"""With more variables than this, setting them one by one takes longer than starting a new interpreter, which gets all at once."""

IMPORT_FAILED = 75
"""The exit code of a spare that could not import the function's packages without side effects."""


class HeldInterpreter:
    """The held interpreter: how it was started, what it has imported in advance, and what is known of the function."""

    def __init__(self, state: reexec.State) -> None:
        self.scan: Any = None if state.scan is None else source_scan.SourceScan(*state.scan)
        self.uid = state.uid
        self.gid = state.gid
        self.network = workspace.Network() if state.own_network else None
        self.environment = state.environment
        self.command = state.command
        self.program = reexec.interpreter_path(self.command[0], self.environment) if state.faithful else None
        """The interpreter's path; None if every run must execute its command."""
        self.startup_variables = state.startup_variables
        self.stream_types = stream_types()
        self.added_variables = {
            name: os.environ[name]
            for name in os.environ
            if name not in state.environment and name not in self.startup_variables
        }
        """Variables that Python itself has added at its start: `LC_CTYPE`, if the locale is C."""
        self.known_modules = ()
        self.imports = imports.Imports()
        self.fast_exit = fast_exit.FastExit()
        self.learn_imports = state.learn_imports
        self.bytecode = bytecode.Bytecode(state.own_sources)
        self.packages = packages.Packages()
        self.hot_pages = ()
        """The pages that a run writes, as arguments for `kernel.populate`."""
        self.kept: kept.KeptWorkspace | None = None
        """What is known of the workspace, if it is kept between runs."""
        self.is_template = False
        """Whether this process is the template, or a fork of it."""
        self.copies_pages = True
        """Whether the next run will probably use this interpreter, so that its pages are worth copying in advance."""

    @property
    def keeps_code(self) -> bool:
        """Whether the workspace has the code, put right after the last run."""
        return self.kept is not None

    def close_kept(self) -> None:
        """Close what no code of the function may hold."""
        if self.kept is not None:
            self.kept.close()

    def fits(self, request: dict[str, Any], env: dict[str, str]) -> bool:
        """Return whether a request can run in the held interpreter without the program being able to notice."""
        return (
            request["in_process"]
            and kernel.NAMES_STAY_IN_BUFFER
            and request["argv"][:SCRIPT] == self.command
            and len(env) <= VARIABLES_LIMIT
            and self._finds_program(env)
            and reexec.startup_variables_for(env, self.environment) == self.startup_variables
            and stream_types() == self.stream_types
            and not self.scan.introspects
            and not has_user_site(env)
            and self.packages.match_command(request["argv"])
            and self.packages.fit_environment(env, self.environment)
        )

    def _finds_program(self, env: dict[str, str]) -> bool:
        """Return whether the command's name means the held interpreter with the request's PATH too."""
        if self.program is None:
            return False
        return (
            env.get("PATH") == self.environment.get("PATH") or reexec.find_program(self.command[0], env) == self.program
        )

    def hint_for(self, request: dict[str, Any], env: dict[str, str]) -> bytes:
        """Return what the first process could do for the next run like this one; b"" for nothing."""
        if not request["in_process"] or self.program is None:
            return b""
        if request["argv"][:SCRIPT] == self.command and not self.packages.match_command(request["argv"]):
            return HINT_RELEARN
        if self.packages.needs_words(env, self.environment):
            return HINT_WORDS
        variables = reexec.startup_variables_for(env, self.environment)
        command = request["argv"][:SCRIPT]
        if variables is None or (command, variables, stream_types()) == (
            self.command,
            self.startup_variables,
            self.stream_types,
        ):
            return b""
        text = HINT_INTERPRETER + " ".join(str(stream_type) for stream_type, _ in stream_types()).encode()
        names = {**reexec.startup_variables(self.environment), **variables}
        changed = [
            f"{name}={variables.get(name, '')}" for name in names if self.environment.get(name) != variables.get(name)
        ]
        text = b"\n".join([text, *map(reexec.as_bytes, (*command, *changed))])
        return text if self.parse_hint(text) is not None else b""

    def parse_hint(self, hint: bytes) -> dict[str, Any] | None:
        """Return the fields of the `State` that a hint for another interpreter asks for. None if any word of it is not an allowed one."""
        first, name, script, *changed = (*hint[1:].decode("ascii", "replace").split("\n"), "", "")
        types = tuple(int(number) if number.isdigit() else -1 for number in first.split())
        variables = reexec.startup_variables_for(
            {**self.environment, **dict(line.split("=", 1) for line in changed if "=" in line)}, self.environment
        )
        if (
            hint[:1] != HINT_INTERPRETER
            or len(types) != channel.STREAMS
            or not set(types) <= set(reexec.STREAM_TYPES)
            or variables is None
            or reexec.interpreter_path(name, self.environment) is None
            or not (_is_script(script) and self._is_program_name(name))
        ):
            return None
        safe = reexec.safe_startup_variables(self.environment)
        if any(
            self.environment.get(variable) == value and variable not in safe for variable, value in variables.items()
        ):
            return None
        return {"command": [name, script], "startup_variables": variables, "stream_types": types}

    def _is_program_name(self, name: str) -> bool:
        """Return whether a program is named in its one allowed form: by its name alone, or by a normalized path without links."""
        folder = os.path.dirname(name)
        known = self.environment.get("PATH", os.defpath).split(os.pathsep)
        return not folder or (paths.is_normalized(name) and (folder in known or os.path.realpath(folder) == folder))


def _is_script(name: str) -> bool:
    """Return whether this is our own program for handlers, or a file of the code, in the one allowed form."""
    path = paths.CODE + "/" + name
    return name == paths.CALL_HANDLER or (
        not name.startswith("-")
        and paths.is_normalized(path)
        and os.path.exists(path)
        and import_report.has_no_links(paths.CODE, os.path.dirname(path))
    )


def has_user_site(env: dict[str, str]) -> bool:
    """Return whether Python would look for packages below this home. If so, a new interpreter handles it all."""
    return os.path.isdir(env.get("HOME", "") + "/.local/lib")


def stream_types() -> list[tuple[int, int]]:
    """Return the file types and block sizes of the standard streams: Python's own streams depend on them."""
    return [(stat.S_IFMT(status.st_mode), status.st_blksize) for status in map(os.fstat, range(channel.STREAMS))]


def run_spare(connections: channel.SpareConnections | channel.ReceivedConnections, held: HeldInterpreter) -> None:
    """Do the spare's whole work before the function's code. Returns if Python itself must continue its start."""
    error, laid_out = _prepare(held)
    connections.fetch()
    spare_end, request_end = connections.spare_end, connections.request_end
    if error:
        _answer(spare_end, error)
    channel.send(
        spare_end,
        b"ready" if held.scan is None else b"ready %d %d" % (held.scan.introspects, held.scan.uses_ctypes),
    )
    packet, descriptors = channel.receive(request_end)
    request_end.close()
    if not packet:
        os._exit(0)
    channel.send(spare_end, RECEIVED + time.monotonic_ns().to_bytes(TIME_BYTES, "little"))
    request = channel.decode_request(packet, descriptors)
    try:
        if not laid_out:
            if vendored.are_there():
                vendored.use(vendored.find())
            _lay_out(held)
            held.scan = held.scan or source_scan.SourceScan()
        payload = descriptors[0]
        descriptors[0] = workspace.lay_out_payload(payload)
        os.close(payload)
    except OSError as failure:
        _answer(spare_end, error_line(b"broken the code could not be laid out:", failure))
    connect_streams(descriptors)
    env = {**held.environment, **request["env"]}
    if request["argv"][1:SCRIPT] == [paths.CALL_HANDLER]:
        env.setdefault("AWS_EXECUTION_ENV", "AWS_Lambda_python{}.{}".format(*sys.version_info))
    if request["compiler_cache"]:
        env["PATH"] = paths.COMPILERS + os.pathsep + env.get("PATH", os.defpath)
    if held.fits(request, env):
        channel.send(spare_end, IN_PROCESS)
        spare_end.close()
        enter_program(held, request["argv"], env)
        return
    if hint := held.hint_for(request, env):
        channel.send(spare_end, hint)
    spare_end.close()
    execute(request["argv"], env)


def _answer(connection: _socket.socket, words: bytes) -> NoReturn:
    """Send words to the first process and exit."""
    channel.send(connection, words)
    os._exit(0)


def _prepare(held: HeldInterpreter) -> tuple[bytes, bool]:
    """Get ready for a request. Returns an error line, b"" for success, and whether the code is laid out."""
    if held.copies_pages:
        kernel.populate(held.hot_pages)  # first, because the preparation writes to these pages too
    try:
        if held.is_template:
            leave_template()
        else:
            drop_privileges(held)
            held.bytecode.load()
            held.packages.read_words()
            held.close_kept()
        workspace.clean(keep_code=held.keeps_code)
        if held.network is not None and not held.is_template:
            held.network.require_nothing_left()
            held.network.close()
    except OSError as error:
        return error_line(b"unclean", error), False
    has_code = workspace.has_code()
    try:
        _lay_out(held)
        if held.packages.names and not held.is_template:
            if not _import_packages(held):
                os._exit(IMPORT_FAILED)
            workspace.clean(keep_code=held.keeps_code)
            _lay_out(held)
        workspace.lay_out_result()
    except OSError as error:
        return error_line(b"broken the code could not be laid out:", error), has_code
    return b"", has_code


def become_template(handover: channel.Handover, held: HeldInterpreter) -> channel.ReceivedConnections:
    """Import the packages, and wait for orders to fork. Returns only in a fork, with its connections. Exits if there is a side effect."""
    drop_privileges(held, template.OOM_SCORE)
    held.bytecode.load()
    held.packages.read_words()
    held.close_kept()
    if held.network is not None:  # before each fork, the first process checks what a spare checks itself
        held.network.close()
    workspace.clean(keep_code=held.keeps_code)
    _lay_out(held)
    if not _import_packages(held):
        os._exit(IMPORT_FAILED)
    if not held.packages.may_be_forked or not template.may_be_forked():
        os._exit(template.UNFIT)
    held.is_template = True
    (control,) = handover.fetch()
    channel.send(control, b"ready")
    return template.hold(control)


def leave_template() -> None:
    """Become an ordinary process of the function's user, in a fork of the template."""
    os.setsid()
    kernel.own_proc_files()
    write_oom_score(OOM_FIRST)


def _import_packages(held: HeldInterpreter) -> bool:
    """Import the function's packages as a run with the container's own environment would. Returns whether that had no side effects."""
    set_environment(held.environment)
    reset_user_site()
    apply_time_zone(held)
    script = held.command[1]
    return held.packages.load(
        held.imports, held.environment, script if script.startswith("/") else f"{paths.WORKSPACE}/{script}"
    )


def _lay_out(held: HeldInterpreter) -> None:
    if not workspace.has_code():
        return
    if not held.keeps_code:
        workspace.lay_out()
    if held.scan is None:
        held.scan = source_scan.SourceScan()
        held.scan.folder(workspace.WORKSPACE, vendored.is_package_file)


def enter_program(held: HeldInterpreter, argv: list[str], env: dict[str, str]) -> None:
    """Prepare this interpreter for the run's arguments and environment. Python continues its own start after it."""
    set_environment({**env, **held.added_variables})
    set_arguments(argv)
    reset_user_site()
    apply_time_zone(held)
    renew_import_state(held)
    held.packages.insert_path(env)
    held.bytecode.activate()
    handler = packages.handler_module(argv)
    if handler != held.packages.handler:
        held.imports.prologue = frozenset()
    held.imports.activate(learn=held.learn_imports)
    log = held.imports.log
    held.fast_exit.activate(held.scan.uses_ctypes, None if log is None else lambda: import_report.write(log, handler))


def set_arguments(argv: list[str]) -> None:
    """Make `argv` the command line, as far as Python shows it."""
    sys.argv[:] = argv[1:]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = argv


def reset_user_site() -> None:
    """Make `site` name the folders below the run's home, as it does at its start."""
    site = sys.modules["site"]
    if site.USER_SITE is not None:
        site.USER_BASE = site.USER_SITE = None
        site.getusersitepackages()


def apply_time_zone(held: HeldInterpreter) -> None:
    """Make the C library, and every imported `time`, read the run's `TZ`, which was not set before."""
    if "TZ" in os.environ:
        for module in (time, sys.modules.get("time"), held.imports.hidden.get("time")):
            if module is not None:
                module.tzset()


def renew_import_state(held: HeldInterpreter) -> None:
    """Give the run's values to modules that keep the time or folder of their import, or a secret or seed that they created then."""
    if held.is_template:
        import_watch.seed(lambda name: held.imports.hidden.get(name) or sys.modules.get(name))
    for name, renew in (("logging", _renew_logging), ("multiprocessing.process", _renew_processes)):
        module = held.imports.hidden.get(name) or sys.modules.get(name)
        if module is not None:
            renew(module)


def _renew_logging(module: Any) -> None:
    module._startTime = time.time_ns() if isinstance(module._startTime, int) else time.time()


def _renew_processes(module: Any) -> None:
    module.ORIGINAL_DIR = paths.WORKSPACE
    module._current_process._config["authkey"] = module.AuthenticationString(os.urandom(KEY_BYTES))


def drop_privileges(held: HeldInterpreter, oom_score: bytes = OOM_FIRST) -> None:
    """Become the function's user, with no way back, and the first process that is killed when memory runs out."""
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    os.setsid()
    write_oom_score(oom_score)
    kernel.drop_bounding_set()
    os.setgroups([held.gid])
    os.setresgid(held.gid, held.gid, held.gid)
    os.setresuid(held.uid, held.uid, held.uid)
    kernel.own_proc_files()
    os.umask(0o022)


def write_oom_score(score: bytes) -> None:
    """Set how early the kernel kills this process when memory runs out."""
    file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(file, score)
    os.close(file)


# -- the work of one-shot children


def lay_out_kept(answer: _socket.socket, held: HeldInterpreter) -> NoReturn:
    """Lay out a workspace that is kept, and send its two descriptors. Sends b"none" if it cannot be kept.

    The modules of packages that runs have compiled are compiled again, from the code itself.
    """
    drop_privileges(held)
    found = kept.compiled_by_runs()
    workspace.clean()
    try:
        descriptors = kept.lay_out(found)
    except OSError:
        workspace.clean()
        _answer(answer, b"none")
    channel.send(answer, b"kept", descriptors)
    os._exit(0)


def repair_kept(answer: _socket.socket, held: HeldInterpreter) -> NoReturn:
    """Put right what the last run has changed in the workspace. Sends b"lost" if it must be laid out anew."""
    drop_privileges(held)
    assert held.kept is not None
    try:
        kept.repair(held.kept.reports, held.kept.record)
    except (kept.LostTrackError, OSError):
        _answer(answer, b"lost")
    _answer(answer, b"kept")


def find_vendored(answer: _socket.socket, held: HeldInterpreter) -> NoReturn:
    """Find the packages among the function's own code, and send their names."""
    drop_privileges(held)
    _answer(answer, vendored.find())


def compile_sources(_: _socket.socket, held: HeldInterpreter) -> NoReturn:
    """Compile the function's own modules into the memory file."""
    drop_privileges(held)
    held.bytecode.compile()
    os._exit(0)


def clean_up(answer: _socket.socket, held: HeldInterpreter) -> NoReturn:
    """Remove everything that the last run has left in the writable folders."""
    try:
        drop_privileges(held)
        workspace.clean()
    except OSError as error:
        _answer(answer, error_line(b"unclean", error))
    _answer(answer, b"clean")


def read_import_report(answer: _socket.socket, held: HeldInterpreter) -> NoReturn:
    """Read the last run's import report and send its valid lines."""
    drop_privileges(held)
    _answer(answer, import_report.valid_lines())


def check_hint(answer: _socket.socket, held: HeldInterpreter, runner_end: _socket.socket) -> NoReturn:
    """Read a spare's hint for another interpreter, and send it on if all its words are allowed."""
    drop_privileges(held)
    hint = channel.receive_bytes(runner_end)
    _answer(answer, hint if held.parse_hint(hint) is not None else b"no")


def collect_words(_: _socket.socket, held: HeldInterpreter) -> NoReturn:
    """Write the words in the packages' compiled modules into the memory file."""
    drop_privileges(held)
    held.packages.write_words()
    os._exit(0)


# -- the start of a run


def connect_streams(descriptors: Sequence[int]) -> None:
    """Make the request's descriptors the standard streams."""
    for stream, descriptor in enumerate(descriptors[: channel.STREAMS]):
        os.dup2(descriptor, stream)
    for descriptor in descriptors:
        os.close(descriptor)


def set_environment(env: dict[str, str]) -> None:
    """Make `env` the environment, in this order, for Python and for its child processes."""
    data = os.environ._data
    for name in list(data):
        os.unsetenv(name)
    data.clear()
    for name, value in env.items():
        raw_name, raw_value = reexec.as_bytes(name), reexec.as_bytes(value)
        os.putenv(raw_name, raw_value)
        data[raw_name] = raw_value


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Replace this process by a command. `env` is its whole environment."""
    for number in (_signal.SIGPIPE, getattr(_signal, "SIGXFSZ", None)):
        if number is not None:
            _signal.signal(number, _signal.SIG_DFL)
    try:
        found = reexec.find_program(argv[0], env)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        program, *arguments = map(reexec.as_bytes, (found, *argv[1:]))
        variables = {reexec.as_bytes(name): reexec.as_bytes(value) for name, value in env.items()}
        try:
            os.execve(program, [reexec.as_bytes(argv[0]), *arguments], variables)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execve(SHELL, [SHELL, program, *arguments], variables)  # a script without a `#!` line
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(2, f"nanogrid: {argv[0]}: {reason}\n".encode("utf-8", "replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


# -- the rehearsal


def rehearse(spare_end: _socket.socket, held: HeldInterpreter) -> None:
    """Run an empty function like a real one, and send the pages that it has written to. Returns like `run_spare`."""
    spans = memory.writable_regions()
    drop_privileges(held)
    if held.network is not None:
        held.network.close()
    workspace.clean()
    file = os.open(b"/workspace/main.py", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(file, PROGRAM + b"".join(b"import %s\n" % root.encode() for root in held.imports.roots))
    os.close(file)
    held.scan = source_scan.SourceScan()
    held.scan.folder(workspace.WORKSPACE, vendored.is_package_file)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    connect_streams([os.dup(null), os.dup(null), null])
    enter_program(held, [*held.command, "main.rehearsed"], dict(held.environment))

    answer = spare_end.detach()  # with an open socket `fast_exit` would leave the end to Python

    def send_pages() -> None:
        runs = memory.unshared_pages(spans)
        os.write(answer, b"".join(b"%x %x\n" % tuple(run) for run in runs)[: channel.PACKET_BYTES])

    held.fast_exit.after = send_pages


PROGRAM = b"""
class Item:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<{self.name}>"


def count(items):
    return {item.name: [len(item.name) * number for number in range(3)] for item in items}


try:
    print((count([Item("a"), Item("bc")]), "%s %d" % ("text", 5), sorted({3, 1, 2})))
    raise ValueError
except ValueError:
    pass
"""


def warm_up() -> None:
    """Do in the first process what a run does, as far as it changes nothing but memory: the spares then find that memory allocated."""
    for _ in range(REHEARSALS):
        names = {"__name__": "rehearsal"}
        exec(compile(PROGRAM.replace(b"print", b"repr"), "rehearsal", "exec", dont_inherit=True), names)  # noqa: S102
        set_environment(reexec.environment())
    gc.collect()
    gc.freeze()


def error_line(words: bytes, error: BaseException) -> bytes:
    """Return words and an error's text in one line of ASCII."""
    return words + b" " + (str(error) or type(error).__name__).encode("ascii", "backslashreplace").replace(b"\n", b" ")
