"""What a hostile run tries to leave for the next run of its function, in the same container. Named after the threats.

All runs are of one function; its code is `exec` of the payload, so that each test says what one run does and what the next
one sees. The rule: `seen` fails where the runs were not in one and the same container.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from nanogrid.execution.container.report import EndReason
from nanogrid.result import Outcome, StartKind
from tests.support.repeated import Repeated, shown
from tests.support.rig import NEWEST_PYTHON_IMAGE, PYTHON_IMAGE, Rig, Run
from tests.support.rig import rig as open_rig
from tests.support.services import wait_until

PROGRAM = """
import ctypes, json, os, resource, signal, socket, stat, subprocess, sys, time

def attempt(action, *arguments):
    try:
        return action(*arguments)
    except Exception as error:
        return type(error).__name__

def tree(folder):
    return sorted(repr(os.path.join(at, name)) for at, folders, files in os.walk(os.fsencode(folder)) for name in folders + files)

def processes():
    return sorted(int(name) for name in os.listdir('/proc') if name.isdigit())

def daemon():
    'Go on in a process that nobody waits for; True there.'
    if os.fork():
        os.wait()
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    return True

exec(json.load(sys.stdin))
"""


@pytest.fixture(scope="module", params=[PYTHON_IMAGE, NEWEST_PYTHON_IMAGE], ids=["oldest", "newest"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A container owner that the tests of this module share, for the oldest and the newest Python."""
    with open_rig(tmp_path_factory.mktemp("rig"), python_image=request.param) as here:
        yield here


@pytest.fixture(scope="module")
def function(rig: Rig) -> Repeated:
    """A function that does what its payload says. All tests share it, and its container: so what one leaves, all see."""
    return Repeated(rig, PROGRAM, memoryMb=256)


@pytest.fixture(scope="module")
def compiling(rig: Rig) -> Repeated:
    """The same as a function whose command may call a compiler."""
    return Repeated(rig, {"run.sh": "exec python3 main.py", "main.py": PROGRAM}, "cpp", memoryMb=256)


def done(function: Repeated, source: str, **changes: object) -> Run:
    """A run that must succeed."""
    run = function.run(source, **changes)  # type: ignore[arg-type]
    assert function.outcome is Outcome.SUCCEEDED, (run.report, run.err)
    return run


def seen(function: Repeated, attack: str, look: str) -> tuple[str, str]:
    """What two runs print that only `look`, one before and one after a run that attacks, all in one container."""
    before = done(function, look)
    first = done(function, attack)
    after = done(function, look)
    assert first.container.id == before.container.id
    assert (after.container.start_kind, after.container.id) == (StartKind.WARM, before.container.id)
    return before.out, after.out


def unchanged(function: Repeated, attack: str, look: str) -> str:
    """What a look shows, the same before and after the attack."""
    before, after = seen(function, attack, look)
    assert after == before
    return after


FILES = "print(*tree('/workspace'), *tree('/tmp'), *tree('/dev/shm'))"
ONLY_CODE = "b'/workspace/main.py'\n"

# -- files


@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm"])
@pytest.mark.parametrize(
    "attack",
    [
        "open('left', 'w').write('secret'); open('.hidden', 'w')",
        "[open(f'{number}', 'w').close() for number in range(5000)]",
        "os.mkdir('locked'); open('locked/in', 'w'); os.chmod('locked/in', 0); os.chmod('locked', 0)",
        "for _ in range(1500): os.mkdir('deep' * 20); os.chdir('deep' * 20)\nopen('bottom', 'w')",
        "for name in (b'\\xff\\xfe', b'new\\nline', b'-rf', b' ', b'*', b'~'): os.mkdir(name); open(name + b'/' + name, 'w')",
        "os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket'); os.symlink('nowhere', 'dangling')",
        "os.symlink('.', 'loop'); os.mkdir('a'); os.symlink('..', 'a/up'); os.link('/workspace/main.py', 'hard') if os.getcwd() == '/workspace' else 0",
        "open('sparse', 'w').truncate(30 << 20); open('full', 'wb').write(bytes(30 << 20))",
    ],
    ids=["hidden", "many", "locked", "deep", "names", "special", "links", "large"],
)
def test_files_for_the_next_run(function: Repeated, folder: str, attack: str) -> None:
    """Whatever a run leaves in the folders that it may write to, of whatever kind, name, number and mode, goes."""
    assert unchanged(function, f"os.chdir({folder!r})\n{attack}", FILES) == ONLY_CODE


def test_changing_modes_of_the_writable_folders(function: Repeated) -> None:
    """A run that locks or opens its own folders, or marks them, changes nothing for the next one."""
    attack = "open('/workspace/x', 'w'); os.chmod('/workspace', 0); attempt(os.chmod, '/tmp', 0); attempt(os.chmod, '/dev/shm', 0)"
    look = "print([oct(os.stat(folder).st_mode) for folder in ('/workspace', '/tmp', '/dev/shm')], os.listdir('/workspace'))"
    assert unchanged(function, attack, look) == "['0o40700', '0o41777', '0o41777'] ['main.py']\n"


@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm"])
@pytest.mark.parametrize("target", ["/nanogrid", "/nanogrid/code", "/proc", "/"])
def test_links_that_lead_the_cleaner_astray(function: Repeated, folder: str, target: str) -> None:
    """Links to what must stay are removed, and what they point to is not."""
    attack = f"os.symlink({target!r}, {folder!r} + '/link')"
    look = (
        "print(tree('/nanogrid/code'), open('/nanogrid/code/main.py').read() == open('main.py').read(), "
        f"os.listdir('/nanogrid/runner') != [], os.path.lexists({folder!r} + '/link'))"
    )
    assert unchanged(function, attack, look).endswith("True True False\n")


def test_a_link_to_what_the_cleaner_could_empty(compiling: Repeated) -> None:
    """The compiler cache stays from run to run, and no link makes the cleaner empty it."""
    done(
        compiling,
        "open('/nanogrid/compiler-cache/kept', 'w').write('1'); os.symlink('/nanogrid/compiler-cache', '/tmp/x')",
    )
    kept = done(compiling, "print(open('/nanogrid/compiler-cache/kept').read(), os.path.lexists('/tmp/x'))")
    assert (kept.out, kept.container.start_kind) == ("1 False\n", StartKind.WARM)


def test_changing_the_own_code(function: Repeated) -> None:
    """A run that rewrites, removes or shadows its code meets it unchanged the next time, with modes and times."""
    attack = (
        "open('/workspace/main.py', 'w').write('print(666)'); os.utime('/workspace/main.py', (1, 1))\n"
        "open('/workspace/json.py', 'w').write('raise SystemExit(66)'); os.mkdir('/workspace/socket')\n"
        "print([attempt(open, f'/nanogrid/code/{name}', 'w') for name in ('main.py', 'new.py')], attempt(os.unlink, '/nanogrid/code/main.py'))"
    )
    look = "print(os.listdir('.'), os.stat('main.py').st_mtime_ns, oct(os.stat('main.py').st_mode), json.__file__)"
    unchanged(function, attack, look)


def test_poisoning_compiled_code(function: Repeated) -> None:
    """A compiled file that a run plants, for its own modules or the library's, is never loaded by the next one."""
    attack = (
        "import importlib.util, marshal\n"
        "bad = marshal.dumps(compile('print(666)', 'bad', 'exec'))\n"
        "for source in ('/workspace/main.py', '/workspace/colorsys.py', '/nanogrid/code/main.py', json.__file__):\n"
        "    cached = importlib.util.cache_from_source(source)\n"
        "    def plant():\n"
        "        os.makedirs(os.path.dirname(cached), exist_ok=True)\n"
        "        open(cached, 'wb').write(importlib.util.MAGIC_NUMBER + bytes([1, 0, 0, 0]) + bytes(8) + bad)\n"
        "    attempt(plant)\n"
        "os.mkdir('/tmp/lib'); open('/tmp/lib/colorsys.py', 'w').write('print(666)'); sys.path.insert(0, '/tmp/lib')\n"
        "sys.modules['colorsys'] = json; json.dumps = None; import builtins; builtins.print = None"
    )
    look = "import colorsys\nprint(tree('/workspace'), colorsys.rgb_to_hsv(0, 0, 0), json.dumps(1), '/tmp/lib' in sys.path)"
    assert unchanged(function, attack, look) == "[\"b'/workspace/main.py'\"] (0.0, 0.0, 0) 1 False\n"


@pytest.mark.parametrize(
    "path", ["/nanogrid/new", "/nanogrid/control.sock", "/nanogrid/runner/new", "/nanogrid/runner/call_handler.py"]
)
def test_writing_where_the_host_and_the_runner_look(function: Repeated, path: str) -> None:
    """Nothing in the container's folder can be written, made, renamed or removed, nor what a run's own folder is mounted on."""
    run = done(
        function,
        f"print(attempt(open, {path!r}, 'w'), attempt(os.unlink, {path!r}), attempt(os.rename, {path!r}, '/nanogrid/x'), "
        "attempt(os.rename, '/nanogrid/run', '/nanogrid/x'), attempt(os.rmdir, '/nanogrid/run'), attempt(os.chmod, '/nanogrid', 0))",
    )
    words = run.out.split()
    assert set(words) <= {"OSError", "PermissionError", "FileNotFoundError"}, words


# -- processes

DAEMONS = {
    "background": "subprocess.Popen(['sleep', '600'])",
    "daemon": "if daemon():\n    os.closerange(0, 1024)\n    time.sleep(600)",
    "many": "for _ in range(40):\n    if os.fork() == 0:\n        os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    "stopped": "if daemon():\n    os.kill(os.getpid(), signal.SIGSTOP)",
    "forking": "if daemon():\n    while True:\n        if os.fork():\n            os._exit(0)",
    "orphans": "if os.fork() == 0:\n    for _ in range(20):\n        if os.fork() == 0: time.sleep(600)\n    os._exit(0)",
    "zombies": "[subprocess.Popen(['true']) for _ in range(20)]",
    "writing": "if daemon():\n    while True:\n        open('/tmp/' + str(time.time_ns()), 'w').close()",
    "traced": "if daemon():\n    ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP)",
    "threads": "import threading\nfor _ in range(20): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
}


@pytest.mark.parametrize("attack", DAEMONS.values(), ids=DAEMONS)
def test_processes_that_outlive_their_run(function: Repeated, attack: str) -> None:
    """Background processes and daemons, however they hide, are gone before the next run begins, with what they write."""
    look = f"print(len(processes()))\n{FILES}"
    assert unchanged(function, attack, look) == f"2\n{ONLY_CODE}"


def test_a_process_that_talks_into_the_next_runs_output(function: Repeated) -> None:
    """A daemon that keeps the streams of its run cannot write to those of the next one."""
    attack = "if daemon():\n    while True:\n        time.sleep(0.001); attempt(os.write, 1, b'ghost'); attempt(os.write, 2, b'ghost')"
    done(function, attack)
    after = done(function, "time.sleep(0.2); print('mine')")
    assert (after.container.start_kind, after.out, after.err) == (StartKind.WARM, "mine\n", "")


# -- the first process and its socket


def test_signalling_or_tracing_the_first_process(function: Repeated) -> None:
    """PID 1 cannot be killed, stopped, traced, read, written, slowed or given limits by a run."""
    source = """
libc = ctypes.CDLL(None, use_errno=True)
print(
    [attempt(os.kill, 1, number) for number in range(1, 65)].count('PermissionError'),
    attempt(os.kill, 0, 0),
    libc.ptrace(16, 1, 0, 0), libc.ptrace(0x4206, 1, 0, 0),
    [attempt(open, f'/proc/1/{name}', mode) for name, mode in (('mem', 'rb'), ('mem', 'r+b'), ('environ', 'rb'), ('auxv', 'rb'), ('oom_score_adj', 'w'), ('comm', 'w'))],
    [attempt(os.listdir, f'/proc/1/{name}') for name in ('fd', 'map_files')],
    [attempt(os.readlink, f'/proc/1/{name}') for name in ('exe', 'cwd', 'root', 'ns/pid', 'fd/3')],
    attempt(os.setpriority, os.PRIO_PROCESS, 1, 19), attempt(os.sched_setaffinity, 1, {0}),
    attempt(resource.prlimit, 1, resource.RLIMIT_NOFILE, (3, 3)),
    [libc.syscall(434, 1, 0) >= 0 and libc.syscall(438, libc.syscall(434, 1, 0), fd, 0) for fd in range(3, 12)],
    libc.syscall(310, 1, 0, 0, 0, 0, 0),
)
"""
    run = done(function, source)
    denied = "PermissionError"
    expected = f"64 None -1 -1 {[denied] * 6} {[denied] * 2} {[denied] * 5} {denied} {denied} {denied} {[-1] * 9} -1\n"
    assert run.out == expected
    assert done(function, "print(1)").container.id == run.container.id


def test_connecting_to_the_control_socket(function: Repeated) -> None:
    """The socket of the runner is no more to be found, and no run holds a descriptor of it."""
    source = """
def reach(path):
    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(path)
links = [attempt(os.readlink, f'/proc/self/fd/{fd}') for fd in range(3, 1024) if os.path.lexists(f'/proc/self/fd/{fd}')]
print(attempt(reach, '/nanogrid/control.sock'), [link for link in links if 'socket' in link or 'memfd' in link], '@' in open('/proc/net/unix').read())
"""
    assert done(function, source).out == "FileNotFoundError [] False\n"


def test_imitating_the_runner(function: Repeated) -> None:
    """Words of the runner on any descriptor that a run has, or can guess, are no words of the runner."""
    source = """
words = (b'ready', b'ended 0 python 1 2 0', b'unclean x', b'broken x', b'hello 3.9.0')
for fd in range(0, 64):
    for word in words:
        if fd != 2: attempt(os.write, fd, word)
        attempt(lambda: socket.socket(fileno=os.dup(fd)).send(word))
sys.exit(7)
"""
    for _ in range(2):
        run = function.run(source)
        assert (run.report.ended, run.report.exit_code) == (EndReason.EXITED, 7)
    assert done(function, "print('fine')").out == "fine\n"


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), 9)", 137),
        ("os.kill(os.getpid(), 11)", 139),
        ("attempt(os.kill, -1, 9); os._exit(6)", 6),
        ("os.abort()", 134),
        ("os.closerange(0, 1024); os._exit(4)", 4),
        ("import gc, atexit, threading; atexit.register(os._exit, 5)", 5),
        ("pid = os.fork()\nif pid == 0: time.sleep(0.01); os.kill(os.getppid(), 9); time.sleep(600)\nos.wait()", 137),
    ],
)
def test_lying_about_the_end(function: Repeated, end: str, exit_code: int) -> None:
    """However a run ends itself, its exit code is what the kernel says, and the next run is right."""
    run = function.run(end)
    assert (run.report.ended, run.report.exit_code) == (EndReason.EXITED, exit_code)
    assert done(function, "print(len(processes()))").out == "2\n"


# -- what the kernel keeps for a process or a user


def test_sockets_that_outlive_their_run(function: Repeated) -> None:
    """Ports, waiting connections and abstract names of a run are free for the next one."""
    source = """
servers = [socket.socket(), socket.socket(socket.AF_UNIX)]
servers[0].bind(('127.0.0.1', 8000)); servers[1].bind(b'\\0abstract')
for server in servers: server.listen()
client = socket.create_connection(('127.0.0.1', 8000)); peer, _ = servers[0].accept()
peer.close(); client.close()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(('127.0.0.1', 8001))
print('bound')
if daemon(): time.sleep(600)
"""
    assert unchanged(function, source, source) == "bound\n"


def test_shared_memory_of_both_kinds(function: Repeated) -> None:
    """No System V object and no message queue can be made, and POSIX shared memory does not outlive the run."""
    attack = """
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0x1234, 4096, 0o1666), libc.semget(0x1234, 1, 0o1666), libc.msgget(0x1234, 0o1666))
from multiprocessing import shared_memory
shared = shared_memory.SharedMemory('left', create=True, size=4096)
shared.buf[:4] = b'left'
os._exit(0)
"""
    look = "print([open(f'/proc/sysvipc/{kind}').read().count('\\n') for kind in ('shm', 'sem', 'msg')], os.listdir('/dev/shm'), attempt(os.listdir, '/dev/mqueue'))"
    assert unchanged(function, attack, look) == "[1, 1, 1] [] []\n"
    assert done(function, attack.replace("os._exit(0)", "pass").split("from multi")[0]).out == "-1 -1 -1\n"


def test_attributes_of_a_process(function: Repeated) -> None:
    """Environment, umask, folder, limits, signals, priorities, affinity, timers, names and personality start afresh."""
    attack = """
os.environ.clear(); os.environ['EVIL'] = '1'; os.umask(0); os.mkdir('/tmp/d'); os.chdir('/tmp/d')
for name in ('NOFILE', 'FSIZE', 'STACK', 'AS', 'NPROC', 'CPU'):
    attempt(resource.setrlimit, getattr(resource, 'RLIMIT_' + name), (1 << 30, 1 << 30) if name in ('AS', 'FSIZE') else (64, 64))
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 30)); [attempt(signal.signal, number, signal.SIG_IGN) for number in range(1, 30)]
os.nice(5); attempt(os.sched_setscheduler, 0, os.SCHED_BATCH, os.sched_param(0)); attempt(os.sched_setaffinity, 0, {0})
attempt(lambda: open('/proc/self/oom_score_adj', 'w').write('1000')); attempt(lambda: open('/proc/self/comm', 'w').write('evil'))
libc = ctypes.CDLL(None); libc.prctl(1, 9); libc.prctl(4, 0); libc.prctl(36, 1); libc.personality(0x0040000); libc.prctl(29, 100000000)
signal.setitimer(signal.ITIMER_REAL, 0.05); attempt(lambda: open('/proc/self/coredump_filter', 'w').write('0')); sys.setrecursionlimit(99); sys.stdout.reconfigure(encoding='ascii')
os._exit(0)
"""
    look = """
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
names = ('Umask', 'SigBlk', 'SigIgn', 'SigCgt', 'CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp', 'Cpus_allowed', 'Uid', 'Gid', 'Groups', 'Threads', 'Name')
print([status[name].strip() for name in names])
print(sorted(os.environ.items()), os.getcwd(), os.umask(0o22), os.getpriority(os.PRIO_PROCESS, 0))
print([resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith('RLIMIT_')])
print(os.sched_getscheduler(0), open('/proc/self/oom_score_adj').read(), open('/proc/self/coredump_filter').read(), sys.getrecursionlimit(), sys.stdout.encoding)
print(signal.getitimer(signal.ITIMER_REAL), ctypes.CDLL(None).personality(0xffffffff), ctypes.CDLL(None).prctl(3), ctypes.CDLL(None).prctl(30), sorted(os.listdir('/proc/self/fd')), open('/proc/self/cmdline').read().split(chr(0)), open('/proc/self/loginuid').read())
"""
    assert unchanged(function, attack, look)


def test_keyrings(function: Repeated) -> None:
    """The kernel's keyrings are out of reach, so they keep nothing for the next run."""
    source = "libc = ctypes.CDLL(None); print(libc.syscall(248, b'user', b'left', b'secret', 6, -4), libc.syscall(250, 0, -4, 1))"
    assert unchanged(function, source, source) == "-1 -1\n"


def test_descriptors_that_outlive_their_run(function: Repeated) -> None:
    """Descriptors that a run opens, or passes to itself through a socket that is never read, are gone."""
    attack = """
here, there = socket.socketpair()
socket.send_fds(here, [b'x'], [os.open('/workspace/main.py', os.O_RDWR)])
for number in range(200): os.set_inheritable(os.open('/tmp', os.O_RDONLY), True)
if daemon(): time.sleep(600)
"""
    look = "print([os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}') and int(fd) > 2])"
    assert unchanged(function, attack, look) == "[]\n"


def test_locks_and_watches(function: Repeated) -> None:
    """A lock on a file that both runs can open is free again: whoever held it is gone."""
    source = """
import fcntl
for path in ('/nanogrid/code/main.py', '/nanogrid/run', '/nanogrid/run/result.json', '/nanogrid/runner/call_handler.py'):
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(os.open('/nanogrid/run/result.json', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
print('locked')
if daemon(): time.sleep(600)
"""
    assert unchanged(function, source, source) == "locked\n"


def test_memory_that_keeps_secrets(function: Repeated) -> None:
    """The next run is not a child of the run before: nothing that it had in memory is there."""
    attack = "globals()['left'] = 'secret'; sys.left = 'secret'; os.left = 'secret'; sys.setswitchinterval(1); sys.argv.append('x')"
    look = "print('left' in globals(), hasattr(sys, 'left'), hasattr(os, 'left'), sys.getswitchinterval(), sys.argv)"
    assert unchanged(function, attack, look) == "False False False 0.005 ['main.py']\n"


# -- what the first process learns from a run

LEARNING = """
import json, os, sys
exec(json.load(sys.stdin))
"""
IMPORT_REPORT = "/nanogrid/run/.imports"
EVIL = (
    "for name in ('colorsys', 'evil'):\n"
    "    for folder in ('/workspace', '/tmp', '/dev/shm'):\n"
    "        open(f'{folder}/{name}.py', 'w').write('import os; os.kill(1, 9); os._exit(9)')\n"
)
FORGERIES = {
    "modules": "open(report, 'w').write('s colorsys\\ns this\\ns antigravity\\ns pdb\\ns __main__\\ns evil\\ns json.evil\\ns ../evil')",
    "packages": "open(report, 'w').write('p evil\\np this\\np os.path\\np __main__\\np nanogrid_warm.serve')",
    "nonsense": "open(report, 'wb').write(os.urandom(1 << 20))",
    "fifo": "os.mkfifo(report)",
    "link": "os.symlink('/proc/self/environ', report)",
    "folder": "os.makedirs(report + '/s colorsys')",
    "locked": "open(report, 'w').write('s colorsys'); os.chmod(report, 0)",
    "endless": "open(report, 'w').write('s colorsys\\n' * 1_000_000)",
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_teaching_the_first_process_a_lie(rig: Rig, forgery: str) -> None:
    """A forged import report makes the first process run, find or wait for nothing of the function's, and the next run is right."""
    function = Repeated(rig, LEARNING)
    used = done(function, f"{EVIL}report = {IMPORT_REPORT!r}\n{forgery}").container.id
    look = "import colorsys; print(sorted(os.listdir('/tmp')), colorsys.rgb_to_hsv(0, 0, 0), 'this' in sys.modules, sys.path[1:] == [x for x in sys.path if 'python3' in x or x.endswith('.zip')])"
    for _ in range(2):
        after = done(function, look)
        assert (after.container.id, after.out) == (used, "[] (0.0, 0.0, 0) False True\n")


# -- the host's side


def test_seeing_the_request_before(function: Repeated) -> None:
    """Payload, environment and result of the run before are not to be found, also where it wrote no result of its own."""
    attack = "open(os.environ['NANOGRID_RESULT'], 'w').write('\"secret-result\"'); 'secret-payload'"
    look = (
        "print('secret' in open('/nanogrid/run/result.json').read(), tree('/nanogrid/run'), "
        "sorted(os.listdir('/nanogrid')), any('TOKEN' in name for name in os.environ))"
    )
    before, after = seen(function, attack, look)
    assert before == after
    assert after.startswith("False [")
    assert function.run("pass").value is None
    env = {**function.wanted.env, "TOKEN": "secret-token"}
    assert done(function, "print(os.environ['TOKEN'])", env=env).out == "secret-token\n"
    assert done(
        function, "print('TOKEN' in os.environ, b'secret-token' in open('/proc/self/environ', 'rb').read())"
    ).out == ("False False\n")


def test_a_payload_that_stays_open(function: Repeated) -> None:
    """A run that keeps its stdin and the payload file open, beyond its end, sees nothing of the next payload."""
    attack = """
file = open('/nanogrid/run/payload.json')
if daemon():
    while True: attempt(lambda: open('/tmp/found', 'a').write(file.read() + sys.stdin.read()))
"""
    assert unchanged(function, attack, f"{FILES}; 'secret'") == ONLY_CODE


def test_filling_everything(function: Repeated) -> None:
    """A run that fills /workspace, /tmp, its result and its processes' number leaves room for the next one."""
    attack = """
def fill(path):
    with open(path, 'wb', buffering=0) as file:
        for _ in range(300): file.write(bytes(1 << 20))
attempt(fill, '/tmp/full'); attempt(fill, '/dev/shm/full'); attempt(fill, '/workspace/full')
os._exit(0)
"""
    look = (
        "print([os.statvfs(folder).f_bfree == os.statvfs(folder).f_blocks for folder in ('/tmp', '/dev/shm')])\n"
        + FILES
    )
    before = done(function, look, limits=type(function.wanted.limits)(1024, 1.0, "none"))
    done(function, attack, limits=type(function.wanted.limits)(1024, 1.0, "none"))
    after = done(function, look)
    assert (after.container.id, after.out) == (before.container.id, before.out)
    assert after.out == f"[True, True]\n{ONLY_CODE}"


def is_gone(rig: Rig, container_id: str) -> bool:
    """Whether the pool has forgotten a container."""
    return container_id not in [one.container_id for one in shown(rig)]


def test_a_run_that_was_cut_short_costs_its_container(function: Repeated, rig: Rig) -> None:
    """After a timeout, too much output or an OOM kill the container is not used again."""
    for attack, ended, timeout_s in (
        ("if daemon(): time.sleep(600)\ntime.sleep(600)", EndReason.TIMED_OUT, 0.5),
        ("while True: print('x' * 100_000)", EndReason.OUTPUT_LIMIT, 30.0),
        ("x = b'x' * (1 << 30)", EndReason.EXITED, 30.0),
    ):
        before = done(function, "pass")
        run = function.run(attack, timeout_s=timeout_s)
        assert (run.report.ended, run.container.id) == (ended, before.container.id)
        wait_until(partial(is_gone, rig, run.container.id), "the container is gone")


def test_a_compiler_cache_where_nothing_is_compiled(function: Repeated) -> None:
    """A container of a python function has none: nothing that it can write to stays."""
    look = "print(os.path.ismount('/nanogrid/compiler-cache'), attempt(open, '/nanogrid/compiler-cache/x', 'w'))"
    assert done(function, look).out == "False PermissionError\n"


def test_another_functions_compiler_cache(rig: Rig) -> None:
    """What one function puts into its compiler cache, no other function finds in its own, nor other code of the same name."""
    first, second = (
        Repeated(rig, {"run.sh": "exec python3 main.py", "main.py": f"{PROGRAM}# {number}"}, "cpp") for number in (1, 2)
    )
    done(first, "open('/nanogrid/compiler-cache/poison', 'w')")
    assert done(second, "print(os.listdir('/nanogrid/compiler-cache'))").out == "[]\n"


def test_code_of_another_function_in_a_used_container(rig: Rig) -> None:
    """A container never changes its function, also where the name of the function is the same and only the code differs."""
    first, second = Repeated(rig, PROGRAM), Repeated(rig, PROGRAM + "# another")
    used = done(first, "pass").container.id
    assert done(second, "pass").container.id != used


def test_growth_over_many_runs(function: Repeated) -> None:
    """Dozens of messy runs in one container leave the number of processes, files and descriptors as it was."""
    look = f"print(len(processes()))\n{FILES}"
    before = done(function, look)
    for number in range(15):
        done(function, f"os.mkdir('/tmp/{number}'); open('/workspace/x', 'w'); daemon() and time.sleep(600)")
    after = done(function, look)
    assert (after.container.id, after.out) == (before.container.id, before.out)
