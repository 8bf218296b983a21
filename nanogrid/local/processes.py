"""Starts, recognizes and stops processes that outlive the command that started them.

The rule: a process is *that* process only if its id and its birth agree. The kernel soon reuses an id.

Facts about processes are read from /proc: every command checks for a local stack, even if the extra `local` is not
installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from nanogrid.errors import ConfigurationError

MARK = "NANOGRID_LOCAL_STACK"
"""This variable names the stack's folder, in the environment of each process of a stack and of the processes it starts."""

ENDED_AT_ONCE = "none:0"
"""The birth of a process that ended before its birth could be read: it equals no living process's."""

_PROC = Path("/proc")
_LISTENS = "0A"
"""A listening socket's state in /proc/net/tcp."""

_POLL_S = 0.02

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this process started, kept to reap them when they end. Guarded by the stack's lock."""


class ProcessRecord(BaseModel):
    """One process, as it is stored on disk. `started_at` is for people: seconds since the epoch."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)

    pid: int
    birth: str
    started_at: float

    @property
    def is_alive(self) -> bool:
        """Whether this same process still runs. A zombie does not."""
        return birth_of(self.pid) == self.birth

    def is_older_than(self, other: ProcessRecord) -> bool:
        """Whether this process was born before the other, both since the same boot. Does not use the clock."""
        (boot, _, tick), (other_boot, _, other_tick) = self.birth.rpartition(":"), other.birth.rpartition(":")
        return boot == other_boot and int(tick) < int(other_tick)


def birth_of(pid: int) -> str | None:
    """Boot id and start tick of a running process: never the same for two processes. None if the process does not run.

    It uses the kernel's ticks since boot, because a wall-clock start time changes whenever the clock is set.
    """
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may contain blanks and parentheses
    state, start_tick = fields[0], fields[19]
    return None if state in "ZX" else f"{boot_id}:{start_tick}"


def start(argv: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> ProcessRecord:
    """Start a process in its own session, with its output appended to `log`.

    Its working folder is `folder`: Python adds the working folder to its path, and a user's own `redis.py` must not be there.
    """
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                argv,
                env={**environment, MARK: str(folder)},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as refused:
            raise ConfigurationError(f"{argv[0]} cannot be started: {refused.strerror}") from refused
    _children[process.pid] = process
    return ProcessRecord(pid=process.pid, birth=birth_of(process.pid) or ENDED_AT_ONCE, started_at=time.time())


def end(record: ProcessRecord, steps: Sequence[tuple[signal.Signals, float]]) -> signal.Signals | None:
    """Send each signal in turn and wait its seconds. Return the signal that ended the process; None if it was gone."""
    for number, patience_s in steps:
        if not _send(record, number):
            return None
        if _gone_within(record, patience_s):
            return number
    raise ConfigurationError(
        f"process {record.pid} does not end, not even after {steps[-1][0].name}: it may hang in the kernel"
    )


def of_stack(folder: Path) -> list[ProcessRecord]:
    """Every running process that has this stack's mark, recorded or not, including children of a killed worker."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for pid in _pids():
        try:
            marked = mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            continue
        birth = birth_of(pid) if marked else None
        if birth is not None and pid != os.getpid():
            found.append(ProcessRecord(pid=pid, birth=birth, started_at=_started_at(birth)))
    return found


def listener_on(port: int) -> str | None:
    """The process that listens on a loopback port, if this user may see it: `redis-server (process 123)`."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for pid in _pids() if sockets else ():
        with contextlib.suppress(OSError):  # gone, or another user's
            if not sockets.isdisjoint(_open_files(pid)):
                return f"{(_PROC / str(pid) / 'comm').read_text().strip()} (process {pid})"
    return None


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal())


def _open_files(pid: int) -> Iterator[str]:
    for link in (_PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(link.readlink())


def _started_at(birth: str) -> float:
    """The time of a birth in this boot, in seconds since the epoch."""
    uptime_s = float((_PROC / "uptime").read_text().split()[0])
    return time.time() - uptime_s + int(birth.rpartition(":")[2]) / os.sysconf("SC_CLK_TCK")


def _listening(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on a TCP port, of either family."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _send(record: ProcessRecord, number: signal.Signals) -> bool:
    if not record.is_alive:
        return False
    try:
        os.kill(record.pid, number)
    except ProcessLookupError:
        return False
    return True


def _gone_within(record: ProcessRecord, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while record.is_alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
