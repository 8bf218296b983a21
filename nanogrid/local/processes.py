"""Starts, recognizes and ends processes that outlive the command which started them.

The one rule: a process is *that* process only when its id and its birth agree. An id alone is soon another's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from nanogrid.errors import ConfigurationError

MARK = "NANOGRID_LOCAL_STACK"
"""In the environment of every process of a stack and of what it starts: the stack's folder."""

ENDED_AT_ONCE = "none:0"
"""The birth of a process that was gone before it could be read: equal to no living one's."""

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
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != str(folder):
                continue
            started_at = process.create_time()
        except (psutil.Error, OSError):  # gone, or somebody else's
            continue
        birth = birth_of(process.pid)
        if birth is not None and process.pid != os.getpid():
            found.append(ProcessRecord(pid=process.pid, birth=birth, started_at=started_at))
    return found


def listener_on(port: int) -> str | None:
    """Who listens on a loopback port, as far as this person may see: `redis-server (process 123)`."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
                continue
            if connection.laddr.port == port:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        return None
    return None


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
