"""What runs in the tests of traces can use: ways to plant a trace in a container, and ways to search for one.

A run executes this text before its own source, so it works with every Python from 3.9 on, without anything of NanoGrid. The rule: code that
searches for a token has it in two halves and never joins them, so that no search finds its own query.
"""

# It works with names as bytes, descriptors and attributes, as the system does.
# ruff: noqa: PTH101, PTH103, PTH109, PTH114, PTH115, PTH118, PTH119, PTH120, PTH123, PTH208, SIM905, TRY301

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import re
import resource
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = os.sysconf("SC_PAGESIZE")
CHUNK_BYTES = 1 << 20
READ_BYTES = 1 << 14
OVERLAP_BYTES = 256
LABEL = re.compile(rb"[A-Za-z]*")
KERNEL_TYPES = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "overlay", "devpts", "mqueue"))
CACHE = "/nanogrid/compiler-cache"
"""Kept from run to run if compilers run. It has a test of its own."""

PAST, FUTURE = 1_234_567_890, 5_000_000_000
"""Times that a run chooses: one long ago, one far in the future."""


def attempt(action: Callable[..., Any], *arguments: Any) -> Any:
    """Return an action's result, or the name of its error."""
    try:
        return action(*arguments)
    except Exception as error:  # noqa: BLE001  # whatever it is
        return type(error).__name__


def say(**found: Any) -> None:
    """Print what was found, for the test."""
    print(json.dumps(found, sort_keys=True))


def daemon() -> bool:
    """Continue in a process that nobody waits for. Returns True there."""
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


WIDTHS = (("ascii", 1), ("utf-16-le", 2), ("utf-32-le", 4))
"""The bytes per letter in a Python's texts: one, or more if other letters are in the text."""


def sibling() -> bool:
    """Continue in a child of the first process, as if that had started it. Returns True there."""
    if os.uname().machine != "x86_64":
        return daemon()
    if LIBC.syscall(56, 0x00008000 | signal.SIGCHLD, 0, 0, 0, 0):  # clone with CLONE_PARENT
        return False
    os.setsid()
    return True


class Token:
    """The two halves of the beginning of a test's tokens. The rest of a token is its label."""

    def __init__(self, first: str, second: str) -> None:
        self._needles = [(first.encode(encoding), width) for encoding, width in WIDTHS]
        self.first = first
        self._second = second.encode()

    def labels(self, data: bytes) -> list[str]:
        """Return the labels of the tokens in a piece of memory, or of a file."""
        found = []
        for needle, width in self._needles:
            at = data.find(needle)
            while at >= 0:
                rest = data[at + len(needle) : at + len(needle) + OVERLAP_BYTES : width]
                if rest.startswith(self._second):
                    match = LABEL.match(rest, len(self._second))
                    found.append(match.group().decode() if match else "")
                at = data.find(needle, at + 1)
        return found

    def is_in(self, text: object) -> bool:
        """Return whether a name or a value contains a token."""
        return bool(self.labels(os.fsencode(str(text))))


# -- memory


def spans(pid: int) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and name of every readable piece of a process's memory."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps.read().splitlines():
            span, modes, _, _, _, *name = line.split(None, 5)
            start, end = (int(number, 16) for number in span.split("-"))
            if modes.startswith("r") and name not in (["[vvar]"], ["[vsyscall]"], ["[vvar_vclock]"]):
                yield start, end, name[0] if name else "anonymous"


def in_memory(token: Token, pid: int) -> dict[str, list[str]]:
    """Return the labels of the tokens anywhere in a process's memory, and where they are."""
    found: dict[str, set[str]] = {}
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    for start, end, name in list(spans(pid)):
        at = start
        while at < end:
            try:
                data = os.pread(memory, min(CHUNK_BYTES, end - at), at)
            except OSError:  # a page that cannot be read, such as one behind the end of its file
                at += PAGE
                continue
            if not data:
                break
            for label in token.labels(data):
                found.setdefault(label, set()).add(name)
            at += max(len(data) - OVERLAP_BYTES, PAGE) if at + len(data) < end else len(data)
    os.close(memory)
    return {label: sorted(names) for label, names in found.items()}


# -- files


def mounts() -> list[str]:
    """Return the mounts that hold files of this container: neither the image's nor the kernel's."""
    found = []
    with open("/proc/self/mountinfo") as table:
        for line in table:
            words = line.split()
            if words[words.index("-") + 1] not in KERNEL_TYPES and not words[4].startswith(("/proc/", "/sys/")):
                found.append(words[4])
    return [*sorted(set(found)), "/dev/mqueue", "/dev/pts"]


def paths(cache: bool = False) -> list[bytes]:
    """Return every path in these mounts, including the mount points."""
    found: dict[bytes, None] = {}
    for mount in map(os.fsencode, mounts()):
        found[mount] = None
        for at, folders, files in os.walk(mount):
            if not cache and at == os.fsencode(os.path.dirname(CACHE)):
                folders[:] = [name for name in folders if name != os.fsencode(os.path.basename(CACHE))]
            found.update(dict.fromkeys(os.path.join(at, name) for name in folders + files))
    if not cache:
        found.pop(os.fsencode(CACHE), None)
    return list(found)


def writable(path: bytes) -> bool:
    """Return whether this run may write there."""
    return os.access(path, os.W_OK)


def content(path: bytes, limit_bytes: int = CHUNK_BYTES) -> bytes:
    """Return the beginning of a regular file; empty for anything else, and if it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return b""
        data = b""
        while len(data) < limit_bytes:
            piece = os.read(file, READ_BYTES)
            if not piece:
                break
            data += piece
        return data
    except OSError:
        return b""
    finally:
        os.close(file)


def attributes(path: bytes) -> dict[str, str]:
    """Return the extended attributes of a path, including access lists."""
    try:
        return {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in os.listxattr(path, follow_symlinks=False)
        }
    except OSError:
        return {}


GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
NO_DUMP, NO_ATIME, SYNCHRONOUS, APPEND, IMMUTABLE = 0x40, 0x80, 0x08, 0x20, 0x10


def flags(path: bytes) -> int:
    """Return the flags of an inode, as `lsattr` shows them; 0 if there are none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        return int(struct.unpack("l", fcntl.ioctl(file, GET_FLAGS, bytes(8)))[0])
    except OSError:
        return 0
    finally:
        os.close(file)


def set_flags(path: bytes, value: int) -> None:
    """Set the flags of an inode."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, SET_FLAGS, struct.pack("l", value))
    finally:
        os.close(file)


def in_files(token: Token, cache: bool = False) -> list[str]:
    """Return where a token is in the name, the content, the target or an attribute of a path in any mount."""
    found = []
    for path in paths(cache):
        target = attempt(os.readlink, path) if os.path.islink(path) else b""
        marks = attributes(path)
        values = b" ".join(bytes.fromhex(value) for value in marks.values())
        pieces = {"name": path, "content": content(path), "target": target, "attribute": str(marks).encode() + values}
        found += [f"{kind} of {path!a}" for kind, data in pieces.items() if token.labels(data)]
    return found


PROC_FOLDERS = ("/proc/self", "/proc/1", "/proc/net", "/proc/sysvipc")
NOT_READ = frozenset(
    (
        "mem",
        "pagemap",
        "clear_refs",
        "task",
        "map_files",
        "fd",
        "ns",
        "cwd",
        "root",
        "net",
        "smaps",
        "smaps_rollup",
        "numa_maps",
    )
)


def in_proc(token: Token) -> list[str]:
    """Return where a token is in /proc: of this process, of the first one, of sockets and other objects."""
    found = []
    for top in PROC_FOLDERS:
        for at, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name not in NOT_READ]
            for name in files:
                path = os.fsencode(os.path.join(at, name))
                if name not in NOT_READ and token.labels(content(path)):
                    found.append(os.fsdecode(path))
    found += [name for name in ("locks", "keys", "timer_list") if token.labels(content(f"/proc/{name}".encode()))]
    return found


FARMS = (b"/nanogrid/code/", b"/nanogrid/packages/")
"""Folders of links to files that all containers of a function share."""


def layout(cache: bool = False) -> dict[str, Any]:
    """Return kind, mode, owner, links, flags and attributes of every path, and whether its times are chosen ones."""
    found: dict[str, Any] = {}
    latest = time.time() + 60
    for path in paths(cache):
        status = os.lstat(path)
        times = [status.st_atime, status.st_mtime]
        found[ascii(path)] = [
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            0 if stat.S_ISDIR(status.st_mode) or path.startswith(FARMS) else status.st_nlink,
            flags(path),
            sorted(attributes(path).items()),
            [moment for moment in times if moment > latest or int(moment) in (PAST, FUTURE)],
        ]
    for place in ("/workspace", "/tmp", "/dev/shm"):
        space = os.statvfs(place)
        found["free in " + place] = [space.f_bfree, space.f_ffree]
    return found


def mark_everything(name: str, cache: bool = False) -> dict[str, int]:
    """Leave a name wherever this run may: files, folders, links, attributes, access lists, times, modes, flags, contents.

    Returns how often each of them worked.
    """
    done = dict.fromkeys(("file", "content", "attribute", "access", "times", "flags", "mode"), 0)

    def mark(kind: str, action: Callable[..., Any], *arguments: Any) -> None:
        done[kind] += not isinstance(attempt(action, *arguments), str)

    raw = os.fsencode(name)
    for path in paths(cache):
        if stat.S_ISDIR(os.lstat(path).st_mode) and writable(path):
            mark("file", write, os.path.join(path, raw), name)
            attempt(os.mkdir, os.path.join(path, raw + b"folder"))
            attempt(os.symlink, raw, os.path.join(path, raw + b"link"))
            attempt(os.mkfifo, os.path.join(path, b"." + raw + b"pipe"))
    for path in paths(cache):
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and writable(path):
            mark("content", write, path, name)
        if stat.S_ISLNK(mode):
            continue
        mark("attribute", set_attribute, path, f"user.{name}", raw)
        for kind in ("system.posix_acl_access", "system.posix_acl_default"):
            mark("access", set_attribute, path, kind, ACCESS)
        for flag in (NO_DUMP, NO_ATIME, SYNCHRONOUS, NO_DUMP | NO_ATIME, APPEND, IMMUTABLE):
            mark("flags", set_flags, path, flag)
        mark("times", os.utime, path, (FUTURE, PAST))
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            mark("mode", os.chmod, path, 0o7777 if stat.S_ISREG(mode) else 0o7700)
    return done


ACCESS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permission, user)
    for tag, permission, user in (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 7, 54321),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 5, 0xFFFFFFFF),
    )
)
"""An access list that names user 54321."""


def set_attribute(path: bytes, name: str, value: bytes) -> bool:
    """Set an extended attribute."""
    os.setxattr(path, name, value)
    return True


def write(path: bytes | str, text: str) -> int:
    """Write a file."""
    with open(path, "w") as file:
        return file.write(text)


# -- processes

STEADY = (
    "Name Umask TracerPid Uid Gid Groups Threads SigPnd ShdPnd SigBlk SigIgn SigCgt CapInh CapPrm CapEff "
    "CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters Speculation_Store_Bypass SpeculationIndirectBranch Cpus_allowed "
    "Mems_allowed THP_enabled untag_mask x86_Thread_features"
).split()
IOPRIO_GET = {"x86_64": 252, "aarch64": 31}.get(os.uname().machine, 252)
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine, 251)
GET = {"pdeathsig": 2, "dumpable": 3, "keepcaps": 7, "timing": 13, "name": 16, "securebits": 27, "timerslack": 30}
GET.update({"mce": 34, "subreaper": 37, "no_new_privs": 39, "thp": 42, "speculation": 52, "io_flusher": 58, "tsc": 25})
BY_POINTER = frozenset(("pdeathsig", "subreaper", "tsc"))


def controls() -> dict[str, Any]:
    """Return what prctl reports for this process."""
    found = {}
    for name, number in GET.items():
        if name == "name":
            text = ctypes.create_string_buffer(16)
            LIBC.prctl(number, text)
            found[name] = text.value.decode("ascii", "replace")
            continue
        value = ctypes.c_int(0)
        answer = LIBC.prctl(number, ctypes.byref(value) if name in BY_POINTER else 0, 0, 0, 0)
        found[name] = str([answer, value.value])
    return found


def process(pid: int) -> dict[str, Any]:
    """Return what every process in the container may see of a process, as far as it does not change by itself."""
    base = f"/proc/{pid}/".encode()
    lines = content(base + b"status").decode().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    fields = content(base + b"stat").decode().rpartition(")")[2].split()
    return {
        "status": {name: status[name].strip() for name in STEADY if name in status},
        # ppid, pgrp, session, tty, tpgid; priority, nice; exit signal, processor's rule
        "stat": [fields[at] for at in (*range(1, 6), 15, 16, 35, 37, 38)] if pid == 1 else fields[15:17],
        "limits": content(base + b"limits").decode(),
        "command": content(base + b"cmdline").decode("utf-8", "replace").split("\0"),
        "name": content(base + b"comm").decode("utf-8", "replace"),
        "oom": [content(base + name).decode() for name in (b"oom_score_adj", b"oom_adj")],
        "dump": content(base + b"coredump_filter").decode(),
        "groups": content(base + b"cgroup").decode(),
        "session": content(base + b"sessionid").decode() + content(base + b"loginuid").decode(),
        "timing": content(base + b"timerslack_ns").decode() + content(base + b"timens_offsets").decode(),
        "autogroup": re.sub(r"autogroup-\d+", "", content(base + b"autogroup").decode()),
        "nice": attempt(os.getpriority, os.PRIO_PROCESS, pid),
        "scheduler": [attempt(os.sched_getscheduler, pid), str(attempt(os.sched_getparam, pid))],
        "processors": str(attempt(os.sched_getaffinity, pid)),
        "disk": LIBC.syscall(IOPRIO_GET, 1, pid),
        "limits by call": [
            str(attempt(resource.prlimit, pid, number))
            for number in range(16)
        ],
    }  # fmt: skip


def descriptors() -> dict[str, list[str]]:
    """Return target, flags, position and locks of every open descriptor, without numbers of objects."""
    found = {}
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        link = attempt(os.readlink, f"/proc/self/fd/{name}")
        if "/proc/" in link or link in ("FileNotFoundError", "OSError"):
            continue  # the folder that is being read
        info = content(f"/proc/self/fdinfo/{name}".encode()).decode()
        lines = [line for line in info.splitlines() if line.startswith(("flags", "lock", "pos"))]
        number = int(name)
        found[name] = [
            re.sub(
                r"\[\d+\]", "", os.path.basename(link) if number == 0 else link
            ),  # the host's own name of the payload
            *(line for line in lines if not (line.startswith("pos") and number == 0)),
            str(attempt(fcntl.fcntl, number, fcntl.F_GETOWN)),
            str(attempt(fcntl.fcntl, number, 11)),  # F_GETSIG
            str(attempt(fcntl.fcntl, number, fcntl.F_GETLEASE)),
            str(attempt(fcntl.fcntl, number, 1032)),  # F_GETPIPE_SZ
            str(attempt(fcntl.fcntl, number, 1034)),  # F_GET_SEALS
            oct(os.fstat(number).st_mode),
            str(os.fstat(number).st_uid),
        ]
    return found


def state() -> dict[str, Any]:
    """Return what this process inherited, and what it sees of the first process."""
    cwd = os.getcwd()
    environment = {name: value for name, value in os.environ.items() if name != "NANOGRID_REQUEST_ID"}
    return {
        "self": process(os.getpid()),
        "first": process(1),
        "controls": controls(),
        "folder": [cwd, os.readlink("/proc/self/root"), os.readlink("/proc/self/exe")],
        "umask": oct(os.umask(0o022)),
        "signals": [str(attempt(signal.getsignal, number)) for number in range(1, 65)],
        "mask": [sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), sorted(map(int, signal.sigpending()))],
        "timers": [str(signal.getitimer(which)) for which in range(3)],
        "stack": [LIBC.personality(ctypes.c_ulong(0xFFFFFFFF)), LIBC.sigaltstack(None, None)],
        "family": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.getppid(), len(processes())],
        "environment": sorted(environment.items()),
        "descriptors": descriptors(),
        "locks": table("locks"),
        "interpreter": [sys.path, sys.flags, sys.argv, sys.getswitchinterval(), sys.getrecursionlimit(), sys.prefix],
        "streams": [str(stream).partition(" at 0x")[0] for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "time": [time.tzname, time.timezone],
        "spaces": [os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))],
        "threads": len(os.listdir("/proc/self/task")),
    }  # fmt: skip


def processes() -> list[int]:
    """Return the processes in this container."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def disturb(name: str) -> None:
    """Change everything that a process may change of itself, of its neighbors and of the first process."""
    for number in range(1, 65):
        attempt(signal.signal, number, signal.SIG_IGN)
    attempt(signal.pthread_sigmask, signal.SIG_BLOCK, signal.valid_signals())
    for number in (signal.SIGUSR1, signal.SIGRTMIN + 3):
        attempt(os.kill, os.getpid(), number)
        attempt(os.kill, 1, number)
    os.umask(0)
    attempt(os.mkdir, "/tmp/" + name)
    attempt(os.chdir, "/tmp/" + name)
    for pid in (0, 1):
        for limit in range(16):
            if limit not in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
                attempt(resource.prlimit, pid, limit, (33, 33))
        for which in (os.PRIO_PROCESS, os.PRIO_PGRP, os.PRIO_USER):
            attempt(os.setpriority, which, pid if which != os.PRIO_USER else os.getuid() * (1 - pid), 7)
        attempt(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))
        attempt(os.sched_setaffinity, pid, {0})
        for who in (1, 2, 3):  # process, group, user
            LIBC.syscall(IOPRIO_SET, who, pid if who != 3 else os.getuid() * (1 - pid), (3 << 13) | 5)
        for file, text in (
            ("oom_score_adj", "999"),
            ("comm", name[:15]),
            ("coredump_filter", "0"),
            ("timerslack_ns", "777777"),
            ("autogroup", "9"),
            ("loginuid", "7"),
        ):
            attempt(write, f"/proc/{pid or 'self'}/{file}", text)
    LIBC.prctl(15, ctypes.create_string_buffer(os.fsencode(name[:15])))
    for control, value in (
        (1, 9),
        (4, 0),
        (8, 1),
        (28, 0xF),
        (29, 123456),
        (33, 1),
        (36, 1),
        (38, 1),
        (41, 1),
        (53, 0),
    ):
        LIBC.prctl(control, value, 0, 0, 0)
    LIBC.prctl(53, 0, 4, 0, 0)
    LIBC.personality(0x0020000)
    for number in range(3):
        attempt(fcntl.fcntl, number, fcntl.F_SETOWN, os.getpid())
        attempt(fcntl.fcntl, number, 10, 40)  # F_SETSIG
        attempt(fcntl.fcntl, number, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND | os.O_ASYNC)
        attempt(fcntl.fcntl, number, 1031, 1 << 16)  # F_SETPIPE_SZ
        attempt(fcntl.flock, number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        attempt(os.fchmod, number, 0o7777)
    for path in (os.environ["NANOGRID_RESULT"], os.environ["NANOGRID_PAYLOAD"], "/nanogrid/code", "/dev/null", "/tmp"):
        for mode in (os.O_RDWR, os.O_RDONLY):
            file = attempt(os.open, path, mode)
            if isinstance(file, int):
                attempt(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                attempt(fcntl.lockf, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                attempt(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                attempt(os.set_inheritable, file, True)
    attempt(signal.setitimer, signal.ITIMER_REAL, 30)
    attempt(signal.setitimer, signal.ITIMER_VIRTUAL, 30)
    os.environ[name] = name
    time.tzset()
    sys.path.insert(0, "/tmp/" + name)
    sys.setrecursionlimit(777)
    sys.setswitchinterval(1)


# -- what a run has in memory, and leaves with whoever keeps something of it


def remember(name: str) -> None:
    """Use a token as the name, text or content of everything that a process has. `name` is the token without its label."""

    def token(label: str) -> str:
        return name + label

    for folder in ("/workspace", "/tmp", "/dev/shm"):
        write(f"{folder}/{token('filename')}", token("filecontent") * 100)
    os.makedirs(f"/workspace/{token('package')}/inner")
    write(f"/workspace/{token('module')}.py", f"TEXT = {token('modulesource')!r}")
    write(f"/workspace/{token('package')}/__init__.py", "")
    write(f"/workspace/{token('package')}/{token('submodule')}.py", f"def {token('definition')}(): pass")
    if "/workspace" not in sys.path:
        sys.path.insert(0, "/workspace")
    __import__(token("module"))
    __import__(token("package") + "." + token("submodule"))
    with contextlib.suppress(ImportError):
        __import__("json." + token("missing"))
    with contextlib.suppress(ImportError):
        __import__(token("absent"))
    print(token("stdout"), flush=True)
    print(token("stderr"), file=sys.stderr, flush=True)
    write(os.environ["NANOGRID_RESULT"], json.dumps({token("resultname"): token("result")}))
    try:
        raise ValueError(token("exception"))
    except ValueError:
        import traceback

        traceback.print_exc()
    os.environ[token("environname")] = token("environvalue")
    LIBC.prctl(15, ctypes.create_string_buffer(os.fsencode(token("")[:15])))
    page = mmap.mmap(-1, PAGE)
    page.write(os.fsencode(token("page")))
    file = os.memfd_create(token("memoryfile"))
    os.write(file, os.fsencode(token("memorycontent")))
    server = socket.socket(socket.AF_UNIX)
    server.bind(b"\0" + os.fsencode(token("socket")))
    globals()[token("global")] = [token("wide") + "\u20ac", token("wider") + "\U0001f600", page, file, server]


def tzif(name: str) -> bytes:
    """Return a time zone's file, one hour east, with this abbreviation."""
    abbreviation = os.fsencode(name) + b"\0"
    header = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, len(abbreviation))
    return header + struct.pack(">lBB", 3600, 0, 0) + abbreviation


STARTED = (
    "import os, sys\n"
    "setattr(sys, {name!r}, getattr(sys, {name!r}, []) + [[os.getpid(), os.getuid(), [line for line in "
    "open('/proc/self/status') if 'CapEff' in line]]])\n"
    "os.environ[{name!r}] = 'started'\n"
    "os.write(2, b'started ' + {name!r}.encode())\n"
)
MODULES = (
    "sitecustomize usercustomize site os codecs encodings io abc stat json app main runpy warnings zipimport "
    "nanogrid_warm __main__ conftest linecache traceback"
).split()


def place_start_up_files(name: str, *folders: str) -> None:
    """Write files that a Python, a loader or a shell may start with wherever they could look for them.

    Each of them, once run, leaves its process id, its user and its capabilities in `sys`, and words in the environment.
    """
    source = STARTED.format(name=name + "started")
    version = "python{}.{}".format(*sys.version_info[:2])
    libraries = [
        "",
        f".local/lib/{version}/site-packages",
        f"lib/{version}",
        f"lib/{version}/site-packages",
        "boot",
        "bin",
        f"cache/usr/lib/{version}",
    ]
    for folder in folders:
        for at in {os.path.join(folder, library) for library in libraries}:
            attempt(os.makedirs, at, 0o777, True)
            for module in MODULES:
                write(f"{at}/{module}.py", source)
            write(f"{at}/{name}.pth", f"import sys; exec({source!r})\n")
            write(f"{at}/python{sys.version_info[0]}{sys.version_info[1]}._pth", "import site\n")
            for script in ("python", "python3", version, "env", "sh", "cat", "ld.so"):
                write(f"{at}/{script}", f"#!/bin/sh\necho started {name}shell >&2\n")
                os.chmod(f"{at}/{script}", 0o755)
            for library in ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "preload.so"):
                write(f"{at}/{library}", name)
            for file in ("start.py", ".pythonrc", ".profile", ".bashrc", "startup"):
                write(f"{at}/{file}", source)
        # The first process is root, and reads what it is allowed to read.
        attempt(os.chmod, folder, 0o777)
        write(f"{folder}/pyvenv.cfg", f"home = {folder}/bin\ninclude-system-site-packages = true\n")
        with open(f"{folder}/zone", "wb") as zone:
            zone.write(tzif(name + "zone"))


def started(token: Token) -> list[Any]:
    """Return what start-up files of a run before have left in this process."""
    left = [vars(sys)[name] for name in vars(sys) if token.is_in(name)]
    left += [[name, value] for name, value in os.environ.items() if token.is_in(name) or token.is_in(value)]
    left += [name for name in time.tzname if token.first in name]  # a Python keeps nine letters
    return left


# -- sockets and shared memory

TABLES = (
    "net/tcp net/tcp6 net/udp net/udp6 net/udplite net/raw net/raw6 net/icmp net/unix net/netlink net/packet net/arp "
    "net/route net/ipv6_route net/igmp net/igmp6 net/dev_mcast net/fib_trie net/ptype sysvipc/shm sysvipc/sem sysvipc/msg locks keys"
).split()


def table(name: str) -> list[str]:
    """Return one of the kernel's tables, without counters and without the addresses that the kernel hides.

    Locks of open files are left out: the kernel shows those of the whole host, and they end with their files.
    """
    lines = content(f"/proc/{name}".encode()).decode("utf-8", "replace").splitlines()
    return sorted(re.sub(r"\b[0-9a-f]{16}\b|\b\d{4,}\b|^\d+: ", "", line) for line in lines if "OFDLCK" not in line)


def in_the_kernel() -> dict[str, Any]:
    """Return what the kernel keeps for a container: connections, addresses, objects in memory, keys, terminals."""
    found: dict[str, Any] = {name: table(name) for name in TABLES}
    found["names"] = {place: sorted(attempt(os.listdir, place)) for place in ("/dev/shm", "/dev/mqueue", "/dev/pts")}
    found["settings"] = settings()
    return found


def settings() -> list[str]:
    """Return the settings of the container that a run could write to."""
    walk = os.walk("/proc/sys")
    return [f"{at}/{name}" for at, _, names in walk for name in names if os.access(f"{at}/{name}", os.W_OK)]


def metrics() -> list[str]:
    """Return what the kernel remembers of the addresses of connections (generic netlink, `tcp_metrics`)."""
    try:
        link = socket.socket(16, socket.SOCK_RAW, 16)  # AF_NETLINK, NETLINK_GENERIC
    except OSError:
        return []
    link.settimeout(2)

    def ask(family: int, command: int, flags: int, attribute: bytes) -> bytes:
        body = struct.pack("<BBH", command, 1, 0) + attribute
        link.send(struct.pack("<IHHII", 16 + len(body), family, flags, 1, 0) + body)
        answer = b""
        while True:
            piece = link.recv(1 << 16)
            answer += piece
            at, kinds = 0, set()
            while at < len(piece):
                size, kind = struct.unpack_from("<IH", piece, at)
                kinds.add(kind)
                at += (size + 3) & ~3
            if kinds & {2, 3} or not flags & 0x300:  # an error, the end, or one answer was asked for
                return answer

    try:
        name = b"tcp_metrics\0"
        family = ask(0x10, 3, 1, struct.pack("<HH", 4 + len(name), 2) + name)
        at = family.find(struct.pack("<HH", 6, 1))
        if at < 0:
            return []
        number = struct.unpack_from("<H", family, at + 4)[0]
        answer = ask(number, 1, 0x301, b"")
    except OSError:
        return []
    finally:
        link.close()
    return sorted(addresses(answer))


def addresses(messages: bytes) -> Iterator[str]:
    """Yield the addresses, local and remote, in messages of `tcp_metrics`."""
    at = 0
    while at < len(messages):
        size, kind = struct.unpack_from("<IH", messages, at)
        inside = at + 20  # behind the headers of netlink and of generic netlink
        while kind > 3 and inside < at + size:
            length, attribute = struct.unpack_from("<HH", messages, inside)
            if attribute & 0x3FFF in (1, 2, 11, 12):
                yield messages[inside + 4 : inside + length].hex()
            inside += (length + 3) & ~3
        at += (size + 3) & ~3


HELD: list[Any] = []
"""What stays open until the end of the run."""


def occupy(name: str) -> None:
    """Take ports, addresses, names and memory, and leave connections in every state. Raises OSError."""
    server = socket.socket()
    server.bind(("127.0.0.1", 8000))
    server.listen()
    for end in ("both", "one", "none", "unread", "reset", "port"):
        client = socket.socket()
        if end == "port":
            client.bind(("127.77.78.79", 8002))
        client.connect(("127.0.0.1", 8000))
        peer, _ = server.accept()
        peer.send(b"unread" if end == "unread" else b"")
        if end == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if end in ("both", "one", "reset"):
            peer.close()
        if end == "both":
            client.close()
        HELD.extend((client, peer))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 8001))
    datagrams.sendto(os.fsencode(name), ("127.0.0.1", 8001))
    local = socket.socket(socket.AF_UNIX)
    local.bind(b"\0" + os.fsencode(name))
    local.listen()
    named = socket.socket(socket.AF_UNIX)
    named.bind("/tmp/" + name)
    pair = socket.socketpair()
    file = os.open("/tmp/" + name + "file", os.O_RDWR | os.O_CREAT)
    pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("ii", file, pair[1].fileno()))])
    write("/dev/shm/" + name, name)
    terminal = attempt(os.openpty)
    HELD.extend((server, datagrams, local, named, pair, file, terminal))
    LIBC.shmget(0x1234, 4096, 0o1666)
    LIBC.semget(0x1234, 1, 0o1666)
    LIBC.msgget(0x1234, 0o1666)
    LIBC.syscall({"x86_64": 248, "aarch64": 217}.get(os.uname().machine, 248), b"user", os.fsencode(name), b"x", 1, -4)


def label_flows() -> None:
    """Take a flow label for IPv6 that this run chooses, which lives longer than the run. Raises OSError."""
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    HELD.append(six)
    # Address, label, action, sharing, flags, linger and expiry in seconds.
    address, label = socket.inet_pton(socket.AF_INET6, "::1"), struct.pack("!I", 0xABCDE)
    six.setsockopt(socket.IPPROTO_IPV6, 32, address + label + struct.pack("BBHHHI", 0, 255, 1, 60, 60, 0))
