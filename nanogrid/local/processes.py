"""Starts, recognizes and ends processes that outlive the command which started them.

The one rule: a process is *that* process only when its id and its birth agree. An id alone is soon another's.

What is asked of the kernel is read in /proc: every command looks for a local stack, also where the extra `local` is not
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
"""In the environment of every process of a stack and of what it starts: the stack's folder."""

ENDED_AT_ONCE = "none:0"
"""The birth of a process that was gone before it could be read: equal to no living one's."""

_PROC = Path("/proc")
_LISTENS = "0A"
"""A listening socket's state in /proc/net/tcp."""

_POLL_S = 0.02

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this very process started, kept to collect them when they end. Guarded by the stack's lock."""


class ProcessRecord(BaseModel):
    """One process, as it is remembered on disk. `started_at` is for people: seconds since the epoch."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)

    pid: int
    birth: str
    started_at: float

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs. A zombie does not."""
        return birth_of(self.pid) == self.birth

    def is_older_than(self, other: ProcessRecord) -> bool:
        """Whether this one was born before the other, both since the same boot. Does not look at the clock."""
        (boot, _, tick), (other_boot, _, other_tick) = self.birth.rpartition(":"), other.birth.rpartition(":")
        return boot == other_boot and int(tick) < int(other_tick)


def birth_of(pid: int) -> str | None:
    """Boot id and start tick of a running process: never the same for two processes. None when none runs.

    The kernel's own ticks since boot, because a wall-clock start time shifts whenever the clock is set.
    """
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and parentheses
    state, start_tick = fields[0], fields[19]
    return None if state in "ZX" else f"{boot_id}:{start_tick}"


def start(argv: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> ProcessRecord:
    """Start a process in a session of its own, its output appended to `log`.

    It works in `folder`: Python puts the working folder on its path, and a person's own `redis.py` must not end up there.
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
    """Send each signal in turn and give it its seconds. The signal that ended the process; None when it was gone."""
    for number, patience_s in steps:
        if not _send(record, number):
            return None
        if _gone_within(record, patience_s):
            return number
    raise ConfigurationError(
        f"process {record.pid} does not end, not even by {steps[-1][0].name}; it may hang in the kernel"
    )


def of_stack(folder: Path) -> list[ProcessRecord]:
    """Every running process that carries this stack's mark, recorded or not: children of a killed worker, too."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for pid in _pids():
        try:
            marked = mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or somebody else's
            continue
        birth = birth_of(pid) if marked else None
        if birth is not None and pid != os.getpid():
            found.append(ProcessRecord(pid=pid, birth=birth, started_at=_started_at(birth)))
    return found


def listener_on(port: int) -> str | None:
    """Who listens on a loopback port, as far as this person may see: `redis-server (process 123)`."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for pid in _pids() if sockets else ():
        with contextlib.suppress(OSError):  # gone, or somebody else's
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
    """Seconds since the epoch of a birth in this boot."""
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
