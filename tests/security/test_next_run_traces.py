"""What one run leaves for the next one of its function, in the same container: nothing at all.

A first run plants random tokens wherever it can. The next one searches for them wherever it can (`inside_a_run.py`). The rule: for each way
of searching, a test proves that it finds what is there.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanogrid.execution.pool.child.lease import Container
from nanogrid.result import StartKind
from nanogrid.runtimes import Runtime
from tests.security.traces import FORK, HANDLER, KINDS, NEW, Token, Traced
from tests.support.repeated import shown
from tests.support.rig import CPP_IMAGE, NEWEST_PYTHON_IMAGE, PYTHON_IMAGE, Rig
from tests.support.rig import rig as open_rig
from tests.support.runner_box import write_code
from tests.support.services import wait_until

IMAGES = {"3.9": PYTHON_IMAGE, "3.11": CPP_IMAGE, "3.13": NEWEST_PYTHON_IMAGE}


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A container owner for one Python, without prewarmed containers: every function's first start is a cold one."""
    with open_rig(tmp_path_factory.mktemp("rig"), python_image=IMAGES[request.param], pool_containers=8) as here:
        yield here


@pytest.fixture(scope="module")
def prewarming(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A container owner for one Python that keeps two containers prewarmed: one for python, and one for another program."""
    image = IMAGES[request.param]
    shell = Runtime(image=image, command=("/bin/sh", "run.sh"), required_file="run.sh")
    with open_rig(
        tmp_path_factory.mktemp("prewarming"),
        python_image=image,
        runtimes={"shell": shell},
        prewarmed={"python": 1, "shell": 1},
    ) as here:
        here.owner.prewarm(["python", "shell"])
        yield here


WITNESS = """
import os, sys, time

def read(file):
    try:
        return os.pread(file, 1 << 20, 0)
    except OSError:
        return b''

def read_path(path):
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b''
    try:
        return read(file)
    finally:
        os.close(file)

def link(name):
    try:
        return os.readlink('/proc/self/fd/' + name)
    except OSError:
        return ''

FOLDERS = '/workspace', '/tmp', '/dev/shm'
numbers = os.listdir('/proc/self/fd')
paths = [os.path.join(at, name) for top in (*FOLDERS, '/nanogrid') for at, _, names in os.walk(top) for name in names]
SEEN = {
    'process': os.getpid(), 'user': os.getuid(), 'group': os.getgid(),
    'capabilities': [line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm'))],
    'environment': dict(os.environ), 'arguments': list(getattr(sys, 'argv', [])), 'modules': sorted(sys.modules),
    'links': [link(name) for name in numbers if int(name) > 2], 'streams': [read(number) for number in range(3)],
    'open': [read(int(name)) for name in numbers],
    'files': {path: read_path(path) for path in paths},
    'payload': read_path(os.environ.get('NANOGRID_PAYLOAD', '')),
    'first': [read_path('/proc/1/' + name) for name in ('cmdline', 'comm', 'environ')],
}
NAME = 'witness-%d' % time.monotonic_ns()
for folder in FOLDERS:
    with open(os.path.join(folder, NAME), 'w') as file:
        file.write(repr(SEEN))
"""
"""A package that records, when it is imported, everything that it can see, and leaves it in every folder that it may write to."""


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer of one package."""
    return write_code(tmp_path / "packages", {"witness/__init__.py": WITNESS})


def pythons(*versions: str) -> pytest.MarkDecorator:
    """Run a test with these Pythons."""
    return pytest.mark.parametrize("rig", versions, indirect=True, scope="module")


every_python = pythons(*IMAGES)
oldest_and_newest = pythons("3.9", "3.13")
every_kind = pytest.mark.parametrize("kind", KINDS)
held_kinds = pytest.mark.parametrize("kind", [FORK, HANDLER])

# -- memory

PLANTED = {
    "payload",
    "envname",
    "envvalue",
    "request",
    "global",
    "wide",
    "wider",
    "page",
    "module",
    "exception",
    "environvalue",
}


def request_with(token: Token) -> dict[str, Any]:
    """A request that has a token in every place that a request has."""
    return {
        "env": {token("envname"): token("envvalue"), "DOUBLE": f"{token('double')}\u20ac"},
        "request_id": token("request"),
    }


def remembering(token: Token) -> str:
    """A run that has tokens in everything that it has."""
    return f"remember({token()!r})\n'{token('payload')}'"


EVERYWHERE = "memory=in_memory(token, kept), files=in_files(token), proc=in_proc(token), started=started(token)"
NOTHING: dict[str, Any] = {"memory": {}, "files": [], "proc": [], "started": []}
LOOKS = 2
"""The effect of one run's import report may show only in the second run after it."""

WARM_UPS = 3
"""After this many runs of a kind the next ones are alike: the interpreter is held, and everything is learned."""


def looking(token: Token, where: str = EVERYWHERE) -> str:
    """A run that searches for a token."""
    return f"token = {token.halves}\nsay({where})"


def found_by_the_next(function: Traced, token: Token, where: str = EVERYWHERE, **request: Any) -> dict[str, Any]:
    """Return what each of the next runs finds of a token."""
    looks = [function.ask(looking(token, where), **request) for _ in range(LOOKS)]
    return next((look for look in looks if look != {name: NOTHING[name] for name in look}), NOTHING)


@every_python
@every_kind
def test_a_look_finds_what_its_own_run_has(rig: Rig, kind: str) -> None:
    """A search in the very run that planted the tokens finds them in memory, in files and in /proc."""
    token = Token()
    look = looking(token, EVERYWHERE + ", own=in_memory(token, os.getpid())")
    found = Traced(rig, kind).ask(f"{remembering(token)}\n{look}", **request_with(token))
    assert set(found["own"]) >= PLANTED
    assert set(found["memory"]) >= {"envname", "envvalue", "request"}
    assert {place.partition(" ")[0] for place in found["files"]} == {"name", "content"}
    assert {"/proc/self/comm", "/proc/net/unix"} <= set(found["proc"])
    assert found["started"]


@oldest_and_newest
@every_kind
def test_runs_are_of_the_kind_that_they_are_called(rig: Rig, kind: str) -> None:
    """Two forks of one interpreter have the same layout of memory, and new interpreters do not."""
    function = Traced(rig, kind)
    layouts = [function.ask("say(at=id(sys.modules))")["at"] for _ in range(4)]
    assert (layouts[2] == layouts[3]) is (kind in (FORK, HANDLER))


@every_python
@every_kind
@pytest.mark.parametrize("packages", [False, True], ids=["plain", "packages"])
@pytest.mark.parametrize("start", [StartKind.COLD, StartKind.WARM])
def test_what_a_run_has_is_nowhere_in_the_next(
    rig: Rig, kind: str, start: StartKind, packages: bool, layer: Path
) -> None:
    """The next runs find nothing, anywhere, of a run's payload, environment, id, output, value, files, modules and errors."""
    token = Token()
    function = Traced(rig, kind, packages=layer, begins_with="witness") if packages else Traced(rig, kind)
    if start is StartKind.WARM:
        for _ in range(WARM_UPS):
            function.run("pass")
    also = "import witness\n" if packages else ""
    function.run(also + remembering(token), **request_with(token))
    assert function.starts[-1] is start
    assert found_by_the_next(function, token) == NOTHING


@pytest.mark.parametrize("prewarming", IMAGES, indirect=True, scope="module")
@every_kind
def test_what_a_run_in_a_prewarmed_container_has_is_nowhere_in_the_next(prewarming: Rig, kind: str) -> None:
    """The same holds for a container that was started before it had a function."""
    wait_until(
        lambda: sum(one.function_id is None and one.state == "paused" for one in shown(prewarming)) == 2, "two wait"
    )
    token = Token()
    function = Traced(prewarming, kind)
    function.run(remembering(token), **request_with(token))
    assert function.starts == [StartKind.PREWARMED]
    assert found_by_the_next(function, token) == NOTHING


SETTINGS = ["PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "TZ", "LANG", "LC_ALL", "HOME"]


@oldest_and_newest
@held_kinds
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_an_interpreter_do_not_reach_the_next(rig: Rig, kind: str, name: str) -> None:
    """The value of a startup variable in a request is nowhere in the next runs."""
    token = Token()
    function = Traced(rig, kind)
    for _ in range(2):  # the first one changes the held interpreter, the second one runs in it
        function.run("attempt(time.tzset)", env={name: token("setting")})
    assert found_by_the_next(function, token) == NOTHING


@every_python
def test_the_name_of_a_handler_does_not_reach_the_next(rig: Rig) -> None:
    """The name of the handler that a request called is nowhere in the next run, which calls another one."""
    token = Token()
    function = Traced(rig, HANDLER)
    for _ in range(2):
        function.run("pass", handler=f"app.{token('handler')}")
    assert found_by_the_next(function, token) == NOTHING


@oldest_and_newest
@pytest.mark.parametrize("size", [20_000, 200_000])
def test_a_large_request_does_not_reach_the_next(rig: Rig, size: int) -> None:
    """An environment that is too large for a packet, and a payload of megabytes, are nowhere in the next runs either."""
    token = Token()
    function = Traced(rig, FORK)
    text = token("large") + "\u20ac" * 10
    env = {f"V{number}{token('name')}": text * (size // 10 // len(text)) for number in range(10)}
    function.run(f"{text * 20_000!r}\nprint(len(os.environ))", env=env)
    assert found_by_the_next(function, token) == NOTHING


# -- what a run teaches

IMPORT_REPORTS = {
    "modules": "s {0}standard\ns json.{0}inner\ns colorsys\n",
    "packages": "b {0}package\nb {0}package.{0}inner\n",
    "own": "o /workspace/{0}own.py\no /workspace/{0}folder/{0}own.py\n",
    "all": "s json.{0}inner\np {0}package\no /workspace/{0}own.py\n{0}nonsense\n",
    "nonsense": "{0}nonsense\n" * 3000,
}


@oldest_and_newest
@pytest.mark.parametrize("report", IMPORT_REPORTS)
def test_an_import_report_does_not_reach_the_next(rig: Rig, report: str) -> None:
    """A forged import report is nowhere in the next runs."""
    token = Token()
    function = Traced(rig, FORK)
    text = IMPORT_REPORTS[report].format(token())
    function.run(f"for path in ('/nanogrid/run/.imports', '/tmp/.imports'):\n    write(path, {text!r})")
    assert found_by_the_next(function, token) == NOTHING


# -- what starts by itself

CHANGES: dict[str, dict[str, str]] = {
    "none": {},
    "buffering": {"PYTHONUNBUFFERED": "1"},
    "language": {"LANG": "C"},
    "zone": {"TZ": ":/workspace/zone"},
    "zone in tmp": {"TZ": "/tmp/zone"},
    "home": {"HOME": "/tmp"},
    "user base": {"PYTHONUSERBASE": "/tmp", "PYTHONSTARTUP": "/tmp/start.py", "PYTHONPYCACHEPREFIX": "/tmp/cache"},
    "path": {"PYTHONPATH": "/tmp:/workspace/lib", "PATH": "/workspace/bin:/tmp/bin:/usr/local/bin:/usr/bin:/bin"},
    "libraries": {
        "LD_LIBRARY_PATH": "/tmp/lib",
        "LOCPATH": "/tmp/lib",
        "BASH_ENV": "/tmp/.bashrc",
        "ENV": "/tmp/.profile",
    },
}


KINDS_AND_CHANGES = [
    *((kind, change) for kind in (FORK, HANDLER) for change in CHANGES),
    (NEW, "none"),
    (NEW, "buffering"),
]


@oldest_and_newest
@pytest.mark.parametrize(("kind", "change"), KINDS_AND_CHANGES)
def test_a_start_up_file_of_a_run_is_run_by_nobody(rig: Rig, kind: str, change: str) -> None:
    """No process after the run that left them reads files that interpreters, loaders and shells start with."""
    token = Token()
    function = Traced(rig, kind)
    env = CHANGES[change]
    function.run(f"place_start_up_files({token()!r}, '/workspace', '/tmp')", env=env)
    looks = [function.run(looking(token), env=env) for _ in range(2)]
    plain = function.run(looking(token))
    for look in (*looks, plain):
        assert json.loads(look.out.splitlines()[-1]) == NOTHING
        assert "started" not in look.err


@oldest_and_newest
def test_a_start_up_file_that_is_run_would_be_seen(rig: Rig) -> None:
    """An interpreter that starts with such files contains what the test above searches for."""
    token = Token()
    function = Traced(rig, FORK)
    source = (
        "import subprocess\n"
        f"place_start_up_files({token()!r}, '/workspace', '/tmp')\n"
        "seen = 'import sys, time; print([n for n in dir(sys) if %r in n], time.tzname)'\n"
        "env = {**os.environ, 'TZ': ':/workspace/zone'}\n"
        f"print(subprocess.run(['python', '-c', seen % {token()!r}], env=env, capture_output=True, text=True, cwd='/').stdout)"
    )
    seen, *zones = function.run(source).out.split()
    assert seen == f"['{token('started')}']"
    assert all(token()[:9] in zone for zone in zones)


# -- packages

CONSTANT = {"SHARED": "the same in every request"}
LEFT = (
    "[name for folder in ('/workspace', '/tmp', '/dev/shm') for name in os.listdir(folder) "
    "if name.startswith('witness') and name != witness.NAME]"
)
SEEN = (
    "seen = witness.SEEN\n"
    "say(left=left, labels=token.labels(repr(seen).encode()), memory=in_memory(token, kept), "
    "sockets=[link for link in seen['links'] if 'socket' in link], "
    "rights=[seen['user'], seen['group'], seen['capabilities']])"
)


def learned(rig: Rig, kind: str, env: dict[str, str], layer: Path, token: Token) -> Traced:
    """A function whose runs have imported a package, with tokens in payload and id, and in everything that differs between them."""
    function = Traced(rig, kind, packages=layer, begins_with="witness")
    request = {**request_with(token), "env": env} if env else request_with(token)
    source = f"import witness\nleft = {LEFT}\ntoken = {token.halves}\n{SEEN}\n{token('payload')!r}"
    own = function.ask(source, **request)
    assert set(own["labels"]) >= {"payload", "request"}  # whoever imports it sees these
    function.run(source, **request)
    return function


@oldest_and_newest
@held_kinds
@pytest.mark.parametrize("env", [{}, CONSTANT], ids=["own", "shared"])
def test_a_package_imported_beforehand_sees_nothing_of_the_request_before(
    rig: Rig, kind: str, env: dict[str, str], layer: Path
) -> None:
    """A package that is imported for the next run sees no request, no socket and no right of the run before."""
    token = Token()
    function = learned(rig, kind, env, layer, token)
    for _ in range(LOOKS):
        found = function.ask(f"import witness\nleft = {LEFT}\ntoken = {token.halves}\n{SEEN}", env=env)
        assert found["rights"] == [65534, 65534, ["0" * 16] * 2]
        assert (found["labels"], found["sockets"], found["memory"], found["left"]) == ([], [], {}, [])


@oldest_and_newest
@held_kinds
@pytest.mark.parametrize("env", [{}, CONSTANT], ids=["own", "shared"])
def test_what_a_package_does_beforehand_is_not_there_in_a_run(
    rig: Rig, kind: str, env: dict[str, str], layer: Path
) -> None:
    """A run finds nothing that a package wrote when it was imported for this run."""
    token = Token()
    function = learned(rig, kind, env, layer, token)
    for _ in range(LOOKS):
        found = function.ask(f"import witness\ntoken = {token.halves}\nsay(left={LEFT}, {EVERYWHERE})", env=env)
        assert found == {**NOTHING, "left": []}


DOING = {
    "a file": "open('/tmp/witness', 'w').close(); open('/workspace/witness', 'w').close()",
    "a process": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)\nos.wait()",
    "an attribute": "import os\nos.setxattr('/workspace', 'user.witness', b'x')",
    "modes": "import os\nos.chmod('/workspace', 0o2755)",
    "times": "import os\nos.utime('/workspace', (5e9, 1234567890))",
    "signals": "import signal\nsignal.signal(10, signal.SIG_IGN); signal.pthread_sigmask(0, [12])",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
    "priority": "import os\nos.nice(3)",
    "a timer": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 500)",
    "a descriptor": "import os\nos.open('/tmp', os.O_RDONLY)",
    "a path": "import sys\nsys.path.append('/tmp/witness'); sys.setrecursionlimit(1234); sys.setswitchinterval(1)",
    "a name": "open('/proc/self/comm', 'w').write('witness')",
}


OF_A_CONTAINER = ("/state/spaces", "/state/self/groups", "/state/first/groups")
"""What differs in each container."""


@oldest_and_newest
@pytest.mark.parametrize("doing", DOING)
def test_a_run_that_does_not_import_a_package_is_as_without_it(rig: Rig, doing: str, tmp_path: Path) -> None:
    """Whatever a package does to its process when it is imported, a run that does not import it starts like any other."""
    packages = write_code(tmp_path / "packages", {"witness/__init__.py": DOING[doing]})
    untouched, function = (Traced(rig, FORK, packages=packages) for _ in range(2))
    expected = [untouched.ask(STATE) for _ in range(2)][-1]
    for _ in range(2):
        function.run("import witness")
    for _ in range(LOOKS):
        found = differences(expected, function.ask(STATE))
        assert [line for line in found if not line.startswith(OF_A_CONTAINER)] == []


# -- files

STATE = "say(state=state(), layout=layout())"


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """Return the differences between two states, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for name in sorted({*before, *after}):
            found += differences(before.get(name), after.get(name), f"{at}/{name}")
        return found
    return [] if before == after else [f"{at}: {before!r} != {after!r}"]


@every_python
@every_kind
def test_nothing_that_a_run_marks_is_marked_in_the_next(rig: Rig, kind: str) -> None:
    """Names, contents, extended attributes, access lists, times, modes and flags that a run sets wherever it may are gone."""
    token = Token()
    function = Traced(rig, kind)
    before = [function.ask(STATE) for _ in range(WARM_UPS)][-1]
    done = json.loads(function.run(f"say(**mark_everything({token()!r}))").out)
    assert {name for name, times in done.items() if not times} == REFUSED
    assert found_by_the_next(function, token) == NOTHING
    assert differences(before, function.ask(STATE)) == []


REFUSED = {"flags"}
"""What no run can set: `syscalls.py` refuses it."""

PLACES = {
    "workspace": "'/workspace'",
    "tmp": "'/tmp'",
    "result": "os.environ['NANOGRID_RESULT']",
    "folder of the result": "os.path.dirname(os.environ['NANOGRID_RESULT'])",
    "payload": "os.environ['NANOGRID_PAYLOAD']",
    "folder of the payload": "os.path.dirname(os.environ['NANOGRID_PAYLOAD'])",
}
MARKS = {
    "an attribute": "set_attribute(path, 'user.{0}', b'{0}')",
    "an access list": "set_attribute(path, 'system.posix_acl_access', ACCESS)",
    "an access list for what is made there": "set_attribute(path, 'system.posix_acl_default', ACCESS)",
    "flags": "set_flags(path, NO_DUMP | NO_ATIME)",
    "other flags": "set_flags(path, SYNCHRONOUS)",
    "times": "os.utime(path, (FUTURE, PAST))",
    "a mode": "os.chmod(path, 0o7777)",
    "a folder": "os.mkdir(path + '/{0}')",
    "a link": "os.symlink('{0}', path + '/{0}')",
    "content": "write(path, '\"{0}\"')",
}


@oldest_and_newest
@pytest.mark.parametrize("place", PLACES)
def test_a_mark_on_a_place_that_stays(rig: Rig, place: str) -> None:
    """What a run does to the places that every run has does not show in the next run."""
    token = Token()
    function = Traced(rig, FORK)
    look = f"token = {token.halves}\nsay(layout=layout(), files=in_files(token))"
    before = [function.ask(look) for _ in range(2)][-1]
    found = []
    for name, mark in MARKS.items():
        function.run(f"path = {PLACES[place]}\nprint(attempt(lambda: {mark.format(token())}))")
        after = function.ask(look)
        found += [f"{name}: {line}" for line in differences(before, after)]
        before = after
    assert found == []


@every_python
def test_a_python_function_has_no_compiler_cache(rig: Rig) -> None:
    """Without compiler calls there is no cache that could keep what a run writes there."""
    token = Token()
    function = Traced(rig, FORK)
    function.run(f"attempt(mark_everything, {token()!r}, True)")
    assert found_by_the_next(function, token, "files=in_files(token, True)") == NOTHING


# -- processes


@every_python
@every_kind
def test_nothing_that_a_run_changes_of_processes_is_changed_in_the_next(rig: Rig, kind: str) -> None:
    """Limits, priorities, signals, timers, masks, names and controls of a run's process, and of the first process, are as before."""
    token = Token()
    function = Traced(rig, kind)
    before = [function.ask(STATE) for _ in range(WARM_UPS)][-1]
    function.run(f"disturb({token()!r})\nprint('disturbed', flush=True)\nos._exit(0)")
    after = [function.ask(STATE) for _ in range(LOOKS)]
    assert [differences(before, one) for one in after] == [[]] * LOOKS
    assert found_by_the_next(function, token) == NOTHING


@oldest_and_newest
def test_a_look_at_processes_finds_what_its_own_run_changed(rig: Rig) -> None:
    """Limits, priorities, signals, timers, masks and names differ if they are read after a change."""
    token = Token()
    function = Traced(rig, FORK)
    before = function.ask(STATE)["state"]
    # In /proc a process that is not dumpable belongs to root, and could not be read.
    after = function.ask(f"disturb({token()!r})\nLIBC.prctl(4, 1, 0, 0, 0)\n{STATE}")["state"]
    found = {line.split(":")[0] for line in differences(before, after)}
    for name in (
        "self/status/SigIgn",
        "self/status/SigBlk",
        "self/limits",
        "self/nice",
        "self/scheduler",
        "self/processors",
    ):
        assert f"/{name}" in found
    for name in (
        "self/disk",
        "self/oom",
        "self/name",
        "controls/timerslack",
        "timers",
        "umask",
        "stack",
        "descriptors/0",
    ):
        assert f"/{name}" in found


@oldest_and_newest
@every_kind
@pytest.mark.parametrize("who", ["daemon", "sibling"])
def test_processes_of_a_run_are_gone(rig: Rig, kind: str, who: str) -> None:
    """The next run finds nothing of daemons, and of children of the first process, with names, sockets and files."""
    token = Token()
    function = Traced(rig, kind)
    before = [function.ask(STATE) for _ in range(WARM_UPS)][-1]
    name = repr(token())
    function.run(
        f"if {who}():\n    attempt(remember, {name})\n    attempt(disturb, {name})\n    while True: time.sleep(1)"
    )
    assert differences(before, function.ask(STATE)) == []
    assert found_by_the_next(function, token) == NOTHING


RESULTS = {
    "link": "os.symlink('/etc/passwd', path)",
    "link into proc": "os.symlink('/proc/1/environ', path)",
    "pipe": "os.mkfifo(path)",
    "folder": "os.makedirs(path + '/' + '{0}')",
    "socket": "socket.socket(socket.AF_UNIX).bind(path)",
    "locked": "write(path, '\"{0}\"'); os.chmod(path, 0)",
    "hard link": "os.link('/workspace/' + ('main.py' if os.path.exists('/workspace/main.py') else 'app.py'), path)",
    "large and empty": "open(path, 'w').truncate(200 << 20)",
    "none": "pass",
    "neighbours": "[write(path + str(number), '\"{0}\"') for number in range(50)]",
}


@oldest_and_newest
@pytest.mark.parametrize("result", RESULTS)
def test_a_strange_result_is_none_and_leaves_nothing(rig: Rig, result: str) -> None:
    """Whatever a run puts in place of its result, its value has nothing of another file, and the next run finds nothing."""
    token = Token()
    function = Traced(rig, FORK)
    action = RESULTS[result].format(token())
    source = (
        "path = os.environ['NANOGRID_RESULT']\nattempt(os.unlink, path)\n"
        f"def act():\n    {action}\nattempt(act)\nsys.stdout.flush()\nos._exit(0)"
    )
    value = function.run(source).value
    assert value is None or set(value) <= {0} or value == f'"{token()}"'.encode()
    function.container = None  # a worker may do without a container where this has happened
    assert function.run(looking(token)).value in (None, b"", b"null")
    assert found_by_the_next(function, token) == NOTHING


# -- what the kernel keeps for a container


@every_python
def test_sockets_and_shared_memory_of_a_run_are_gone(rig: Rig) -> None:
    """Ports, waiting connections, abstract names, queues and shared memory of a run are gone, and free, in the next run."""
    token = Token()
    function = Traced(rig, FORK)
    quiet = [function.ask("say(kept=in_the_kernel())") for _ in range(2)][-1]
    busy = function.ask(f"occupy({token()!r})\nsay(kept=in_the_kernel())")
    assert len(differences(quiet, busy)) >= 4
    assert differences(quiet, function.ask("say(kept=in_the_kernel())")) == []
    assert function.ask(f"occupy({token()!r})\nsay(again=True)") == {"again": True}
    assert found_by_the_next(function, token) == NOTHING


@every_python
def test_the_kernel_remembers_no_address_of_a_run(rig: Rig) -> None:
    """The kernel keeps no measurements of connections, so the addresses that a run has chosen are gone in the next run."""
    function = Traced(rig, FORK)
    look = "say(kept=metrics())"
    quiet = function.ask(look)
    assert function.ask(f"occupy('x')\n{look}") == quiet
    assert function.ask(look) == quiet


@every_python
def test_the_kernel_remembers_no_flow_label_of_a_run(rig: Rig) -> None:
    """A label outlives its run for as long as the run has chosen. So the container is not used again."""
    function = Traced(rig, FORK)
    look = "say(kept=table('net/ip6_flowlabel'))"
    quiet = function.ask(look)
    used = function.container
    assert function.ask(f"label_flows()\n{look}") != quiet
    function.container = None
    assert function.ask(look) == quiet
    assert function.container != used


# -- the host


def in_slot(folder: Path, token: Token) -> list[str]:
    """Return the files of a container's folder on the host that have a token in name or content."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if token() in path.name or (path.is_file() and not path.is_symlink() and token().encode() in path.read_bytes())
    ]


@oldest_and_newest
@held_kinds
def test_the_host_keeps_nothing_of_a_request_in_an_idle_containers_folder(rig: Rig, kind: str, layer: Path) -> None:
    """While a container idles, no file in its folder has the payload, the environment, the id, the output or the value."""
    token = Token()
    function = Traced(rig, kind, packages=layer)
    run = function.run(remembering(token), **request_with(token))
    folder = run.container.folder.path
    wait_until(
        lambda: {one.state for one in shown(rig) if one.container_id == function.container} <= {"idle", "paused"},
        "it idles",
    )
    assert in_slot(folder, token) == []


@oldest_and_newest
@held_kinds
def test_the_host_has_what_it_made_in_an_idle_containers_folder(rig: Rig, kind: str, layer: Path) -> None:
    """Owner, kind, mode, links and attributes of everything there are those of the worker's own files."""
    token = Token()
    function = Traced(rig, kind, packages=layer)
    folder = function.run(f"mark_everything({token()!r})").container.folder.path
    wrong = []
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        inside = path.relative_to(folder).parts[:1]
        problems = {
            "owner": (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()),
            "set-id bits": bool(status.st_mode & 0o7000),
            "writable for others": bool(status.st_mode & 0o002),
            "links": inside not in (("code",), ("packages",)) and stat.S_ISREG(status.st_mode) and status.st_nlink != 1,
            "attributes": bool(os.listxattr(path, follow_symlinks=False)),
            "kind": not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)),
            "times": max(status.st_mtime, status.st_atime) > time.time() + 60,
        }
        wrong += [f"{path.relative_to(folder)}: {what}" for what, is_so in problems.items() if is_so]
    assert wrong == []


@oldest_and_newest
def test_containers_folders_are_closed_to_others_of_the_host(rig: Rig) -> None:
    """Between the data folder and a container's folder there is one that only the worker's user may enter."""
    folder = Traced(rig, FORK).run("pass").container.folder.path
    between = [parent for parent in folder.parents if parent.is_relative_to(rig.settings.data_dir)]
    assert any(not parent.stat().st_mode & 0o077 for parent in between)


def test_a_look_at_a_containers_folder_finds_a_token(tmp_path: Path) -> None:
    """Names and contents are searched, in every folder below."""
    token = Token()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "one").write_text("x" + token("content"))
    (tmp_path / token("name")).touch()
    (tmp_path / "other").write_text("nothing")
    assert set(in_slot(tmp_path, token)) == {"inner/one", token("name")}


def test_a_launched_containers_request_is_for_nobody_else(tmp_path: Path) -> None:
    """In a container without a runner, only its user can read command and payload, and both are removed with the run."""
    token = Token()
    open_to_others: list[str] = []

    def look(container: Container) -> None:
        folder = container.folder.path
        found = in_slot(folder, token)
        assert len(found) >= 2, found
        open_to_others.extend(name for name in found if (folder / name).stat().st_mode & 0o007)

    with open_rig(tmp_path) as here:
        run = here.run(
            {"run.sh": "cat; echo $SECRET"},
            runtime="sh",
            payload=token("payload"),
            env={"SECRET": token("secret")},
            during=look,
        )
        assert token("secret") in run.out
        wait_until(lambda: not run.container.folder.path.exists(), "its folder is gone")
    assert open_to_others == []
