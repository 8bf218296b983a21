"""Attacks that a reviewer tried against the next run, the first process and the host.

The rule: the attacks leave only harmless marks, and each test states in one sentence what is right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogrid.execution.container.report import EndReason
from nanogrid.result import Outcome
from tests.security.traces import FORK, Traced
from tests.support.rig import NEWEST_PYTHON_IMAGE, PYTHON_IMAGE, Rig
from tests.support.rig import rig as open_rig
from tests.support.runner_box import write_code


@pytest.fixture(scope="module", params=[PYTHON_IMAGE, NEWEST_PYTHON_IMAGE], ids=["oldest", "newest"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A container owner that the tests of this module share, for the oldest and the newest Python."""
    with open_rig(tmp_path_factory.mktemp("rig"), python_image=request.param, pool_containers=8) as here:
        yield here


# -- what a run teaches

LEAVE_A_PATH = """
steps = "".join("./" if bit == "1" else "/" for byte in {text!r} for bit in format(byte, "08b"))
file = os.open("/nanogrid/run/.imports", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
os.write(file, b"o /workspace/" + steps.encode() + b"main.py")
os._exit(0)
"""
LOOK_FOR_PATHS = """
memory = os.open(f"/proc/{kept}/mem", os.O_RDONLY)
found = set()
for start, end, _ in spans(kept):
    for path in re.findall(b"/workspace/([./]{40,})main", attempt(os.pread, memory, end - start, start) or b""):
        bits = path.replace(b"./", b"1").replace(b"/", b"0").decode()
        found.add(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).decode("latin-1"))
say(found=sorted(found))
"""


def test_a_path_with_detours_is_not_learned(rig: Rig) -> None:
    """Only the normalized one of a file's many paths is learned: which one a run has chosen is nowhere in the next run."""
    function = Traced(rig, FORK)
    for number in range(2):
        function.run(LEAVE_A_PATH.format(text=b"marker %d" % number))
        assert function.ask(LOOK_FOR_PATHS) == {"found": []}


# -- what a request chooses

ASCII = {"PYTHONUTF8": "0", "LC_ALL": "C"}


def test_how_a_request_wants_text_encoded_is_its_own_affair(rig: Rig) -> None:
    """If a request makes the held interpreter one that knows only ASCII, the next run still starts like any other."""
    function = Traced(rig, FORK)
    look = "say(name=ascii(os.environ.get('NAME')), encoding=sys.getfilesystemencoding())"
    for _ in range(2):
        assert function.ask(look, env=ASCII) == {"name": "None", "encoding": "ascii"}
    assert function.ask(look, env={"NAME": "\xe9"}) == {"name": "'\\xe9'", "encoding": "utf-8"}
    for _ in range(2):
        found = function.ask(look, env={**ASCII, "NAME": "\xe9"})
        assert found == {"name": "'\\udcc3\\udca9'", "encoding": "ascii"}
    assert function.ask(look, env={"PATH": "/\xe9:/usr/local/bin:/usr/bin:/bin"})["encoding"] == "utf-8"


def test_a_request_with_very_many_variables(rig: Rig) -> None:
    """It takes no longer than with a new interpreter."""
    function = Traced(rig, FORK)
    function.run("pass")
    env = {f"V{number}": "x" for number in range(50_000)}
    run = function.run("print(sum(name.startswith('V') for name in os.environ))", env=env)
    assert run.out == "50000\n"
    assert run.report.duration_ms < 2000


# -- descriptors

OPEN = """
links = [attempt(os.readlink, f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
say(memory=[link for link in links if link.startswith("/memfd:")], seen=getattr(sys.modules.get("pack"), "SEEN", None))
"""
PACKAGE = """
import os
SEEN = []
for number in os.listdir("/proc/self/fd"):
    try:
        SEEN.append(os.readlink(f"/proc/self/fd/{number}"))
    except OSError:  # that of the list itself
        pass
"""


def test_a_run_has_no_memory_file_of_the_first_process(rig: Rig, tmp_path: Path) -> None:
    """No run has a memory file of the first process open: what a run wrote there would reach the next run."""
    layer = write_code(tmp_path / "packages", {"pack.py": PACKAGE, "compiled.so": "WORDS"})
    function = Traced(rig, FORK, packages=layer, begins_with="pack")
    for number in range(5):
        assert function.ask("import pack\n" + OPEN, env={"PLAIN": str(number)})["memory"] == []


def test_a_package_imported_beforehand_has_no_descriptor_of_the_first_process(rig: Rig, tmp_path: Path) -> None:
    """Its standard streams, and everything else that is open, are the spare's own: nothing written there reaches the next run."""
    layer = write_code(tmp_path / "packages", {"pack.py": PACKAGE, "compiled.so": "WORDS"})
    function = Traced(rig, FORK, packages=layer, begins_with="pack")
    seen = [function.ask("import pack\n" + OPEN, env={"PLAIN": str(number)})["seen"] for number in range(5)]
    assert [links for links in seen[3:] if set(links) != {"/memfd:silent (deleted)"}] == []


# -- packages that are let in, and stay

STAY = """
import array, os, sys, time
import _socket

def frame(name, file):
    found = sys._getframe()
    while found is not None and (found.f_code.co_name, os.path.basename(found.f_code.co_filename)) != (name, file):
        found = found.f_back
    return found

class Instead:
    "Stands in for a connection."
    def __init__(self, real, **methods):
        self.real = real
        self.__dict__.update(methods)
    def __getattr__(self, name):
        return getattr(self.real, name)

BEFOREHAND = (frame("run_spare", "spare.py") or frame("become_template", "spare.py")) is not None

def once_it_is_in(act):
    "Do something when the process that imports this beforehand has its connections."
    spare, load, template = frame("run_spare", "spare.py"), frame("load", "packages.py"), frame("become_template", "spare.py")
    if spare is None and template is None:
        return
    names = load.f_locals
    before = names["before"]
    if isinstance(names, dict):  # before Python 3.13 a copy, which keeps what it names
        names.clear()
    load.f_globals["_process_state"] = lambda: before
    if template is not None:
        template.f_globals["channel"].ReceivedConnections.fetch = act
        return
    connections = spare.f_locals["connections"]
    fetch = connections.fetch
    def fetched():
        fetch()
        act(connections)
    connections.fetch = fetched
"""
TWICE = """
def act(connections):
    real = connections.request_end
    def recvmsg(*how):
        first = real.recvmsg(*how)
        for word in (b"ended 0 exec 1 2 0", b"ready"):
            try:
                real.send(word)
            except OSError:
                pass
        real.settimeout(0.3)
        try:
            second = real.recvmsg(*how)
        except OSError:
            return first
        streams = array.array("i", (second[1] or first[1])[0][2])
        os.write(streams[1], b"both: %s %s" % (first[0], second[0]))
        os._exit(0)
    connections.request_end = Instead(real, recvmsg=recvmsg)
once_it_is_in(act)
"""
EARLIER = """
def act(connections):
    real = connections.spare_end
    def sendmsg(data, *beside):
        return real.sendmsg([b"T" + bytes(8)] if data[0][:1] == b"T" else data, *beside)
    connections.spare_end = Instead(real, sendmsg=sendmsg)
once_it_is_in(act)
"""
BESIDE = """
SEEN = sorted(link for number in os.listdir("/proc/self/fd") for link in [os.path.realpath("/proc/self/fd/" + number)] if "mine" in link)
mine = os.memfd_create("mine")
def act(connections):
    real = connections.spare_end
    def sendmsg(data, *_):
        return real.sendmsg(data, [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [mine]))])
    connections.spare_end = Instead(real, sendmsg=sendmsg)
once_it_is_in(act)
"""


def test_a_package_that_tells_the_host_of_an_end(rig: Rig, tmp_path: Path) -> None:
    """One process never gets two requests: the host ignores what it writes to its request's connection, and sends one request there."""
    layer = write_code(tmp_path / "packages", {"pack.py": STAY + TWICE})
    function = Traced(rig, FORK, packages=layer, begins_with="pack")
    for number in range(4):
        run = function.attempt(f"import pack\nprint({number})")
        assert (run.report.exit_code, "both" in run.out) == (0, False), (run.out, run.err)


def test_a_package_that_says_when_its_run_began(rig: Rig, tmp_path: Path) -> None:
    """A run cannot appear longer than the time between its request and its end."""
    layer = write_code(tmp_path / "packages", {"pack.py": STAY + EARLIER})
    function = Traced(rig, FORK, packages=layer, begins_with="pack")
    runs = [function.run("import pack\nprint(pack.BEFOREHAND)") for _ in range(3)]
    assert [run.out for run in runs] == ["False\n", "True\n", "True\n"]
    assert max(run.report.duration_ms for run in runs) < 10_000


def test_a_package_that_gives_the_first_process_a_descriptor(rig: Rig, tmp_path: Path) -> None:
    """A descriptor that comes with a spare's word reaches neither the first process nor the next spare and run."""
    layer = write_code(tmp_path / "packages", {"pack.py": STAY + BESIDE})
    function = Traced(rig, FORK, packages=layer, begins_with="pack")
    look = "import pack\nlinks = [attempt(os.readlink, '/proc/self/fd/' + number) for number in os.listdir('/proc/self/fd')]"
    for _ in range(5):
        found = function.ask(f"{look}\nsay(seen=pack.SEEN, open=sum('mine' in link for link in links))")
        assert found["seen"] == []
        assert found["open"] <= 1


# -- processes

TRACER = """
LIBC.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # some systems let nobody trace who was not asked
traced, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.write(told, b"%d" % LIBC.ptrace(0x4206, os.getppid(), 0, 0))
    time.sleep(600)
print(os.read(traced, 8).decode(), flush=True)
os._exit(7)
"""


def test_a_run_whose_end_somebody_else_waits_for(rig: Rig) -> None:
    """A run that its own process traces ends when it ends, although the kernel notifies the tracer first."""
    function = Traced(rig, FORK)
    function.run("pass")
    began = time.monotonic()
    run = function.attempt(TRACER, timeout_s=5)
    assert (run.report.ended, run.report.exit_code, run.out) == (EndReason.EXITED, 7, "0\n")
    assert time.monotonic() - began < 5
    assert function.outcome is Outcome.FAILED
    function.run("pass")


# -- what the kernel keeps

UNANSWERED = """
def keyed(end, address, key):
    end.setsockopt(socket.IPPROTO_TCP, 14, struct.pack("=H2s4s120sBBHI80s", 2, b"", socket.inet_aton(address), b"", 0, 0, len(key), 0, key))

server, client = socket.socket(), socket.socket()
server.bind(("127.7.8.9", 8010))
client.bind(("127.66.77.88", 8011))
keyed(server, "127.66.77.88", b"one")
keyed(client, "127.7.8.9", b"one")
server.listen()
client.connect(("127.7.8.9", 8010))
peer, _ = server.accept()
keyed(client, "127.7.8.9", b"other")
keyed(peer, "127.66.77.88", b"another")
HELD.extend((server, client, peer))
"""
"""A connection whose ends no longer accept each other's packets, not even its end (TCP_MD5SIG)."""
FAST = """
server = socket.socket()
server.bind(("127.7.8.9", 8012))
server.listen()
client = socket.socket()
client.bind(("127.66.77.88", 8013))
attempt(client.sendto, b"x", 0x20000000, ("127.7.8.9", 8012))
other = socket.socket()
attempt(other.setsockopt, socket.IPPROTO_TCP, 30, 1)
attempt(other.connect, ("127.7.8.10", 8012))
"""
CONNECTIONS = "say(tables=[table('net/tcp'), table('net/tcp6')], remembered=metrics())"


def test_a_connection_that_does_not_end(rig: Rig) -> None:
    """The kernel keeps the ports and addresses of a connection whose end is not confirmed. So the container is not used again."""
    function = Traced(rig, FORK)
    quiet = function.ask(CONNECTIONS)
    used = function.container
    function.run(f"{UNANSWERED}\nprint('connected')")
    function.container = None
    assert function.ask(CONNECTIONS) == quiet
    assert function.container != used


def test_connections_that_are_left_open(rig: Rig) -> None:
    """They are closed before the next run, in the same container, even with much data under way."""
    function = Traced(rig, FORK)
    quiet = function.ask(CONNECTIONS)
    for _ in range(3):
        function.run("occupy('x')\nHELD[4].setblocking(False)\nattempt(HELD[4].send, bytes(1 << 20))")
        assert function.ask(CONNECTIONS) == quiet


def test_connections_that_are_opened_fast(rig: Rig) -> None:
    """The kernel remembers nothing of peers to which a run has sent its first data before they answered (TCP Fast Open)."""
    function = Traced(rig, FORK)
    quiet = function.ask(CONNECTIONS)
    function.run(FAST)
    assert function.ask(CONNECTIONS) == quiet


TIMES = """
found = {}
for top in ("/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/tmp", "/workspace", "/nanogrid/run"):
    for path in [top, *(os.path.join(top, name) for name in os.listdir(top))]:
        status = os.lstat(path)
        found[path] = [status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns]
"""
TOUCH = (
    """
def await_full_second():
    time.sleep(1 - time.time() % 1 + 0.02)
"""
    + TIMES
    + """
# Some file systems store whole seconds only, so the run gets one to itself.
await_full_second()
began = time.time_ns() - 50_000_000
for path in found:
    attempt(lambda: os.utime(path, follow_symlinks=False))
for folder in ("/tmp", "/dev/shm"):
    write(folder + "/mark", "")
    os.unlink(folder + "/mark")
ended = time.time_ns()
await_full_second()
say(began=began, ended=ended)
"""
)


def test_the_moment_at_which_a_run_has_touched_something(rig: Rig) -> None:
    """No folder, device or link that exists in every run has a time from within another run."""
    function = Traced(rig, FORK)
    function.run("pass")
    run = function.ask(TOUCH)
    found = function.ask(f"{TIMES}\nsay(found=found)")["found"]
    assert {
        path: times for path, times in found.items() if any(run["began"] <= at <= run["ended"] for at in times)
    } == {}
