"""Starts, shows and stops the local stack.

The rule: `up` and `down` check what actually runs, not what was recorded, and do what is missing. Either may be
repeated, interrupted or killed at any point; the next one continues from there.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from nanogrid.errors import ConfigurationError
from nanogrid.local import processes
from nanogrid.local.containers import present_images, remove_remains
from nanogrid.local.environment import CANDIDATE_IMAGES, process_environment, producer_environment
from nanogrid.local.folder import Ports, StackFolder, StackState
from nanogrid.local.parts import WARM_SHUTDOWN_S, Part, require_installed, stack_parts
from nanogrid.local.probes import LOOPBACK
from nanogrid.local.processes import ProcessRecord

LOG_LIMIT_BYTES = 16 * 1024 * 1024
"""A larger log is moved aside (one generation) when its process starts."""

_POLL_S = 0.05


class Event(str, Enum):
    """What happens to a part while the stack starts or stops."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    KEPT = "kept"
    ENDING = "ending"
    ENDED = "ended"
    KILLED = "killed"


@dataclass(frozen=True)
class Step:
    """One event to report. `seconds` is how long it took, if it took time."""

    event: Event
    part: str = ""
    detail: str = ""
    seconds: float = 0.0


Report = Callable[[Step], None]


class Condition(str, Enum):
    """The condition of a part."""

    RUNNING = "running"
    SILENT = "not answering"
    STALLED = "standing still"
    DIED = "died"
    STOPPED = "stopped"


@dataclass(frozen=True)
class PartStatus:
    """One line of `nanogrid status`. `pid` and `uptime_s` are None for a part that does not run."""

    name: str
    condition: Condition
    address: str
    log: Path
    pid: int | None = None
    uptime_s: float | None = None

    def to_wire(self) -> dict[str, str | int | float | None]:
        """The camelCase JSON object."""
        return {
            "name": self.name,
            "condition": self.condition.value,
            "address": self.address,
            "pid": self.pid,
            "uptimeSeconds": None if self.uptime_s is None else round(self.uptime_s, 1),
            "log": str(self.log),
        }


@dataclass(frozen=True)
class PortChoice:
    """Requested ports. None: the current port, else the default."""

    sqs: int | None = None
    redis: int | None = None
    flower: int | None = None

    def over(self, ports: Ports) -> Ports:
        """`ports` with the requested ones replaced."""
        asked = {name: value for name, value in vars(self).items() if value is not None}
        return ports.model_copy(update=asked)


class LocalStack:
    """The stack in one folder. Not thread-safe; any number of processes may use the same folder."""

    def __init__(self, folder: StackFolder, report: Report = lambda _step: None) -> None:
        self.folder = folder
        self._report = report

    def up(self, asked: PortChoice | None = None) -> StackState:
        """Start what does not run, keep what does, and return once every part answers.

        Raises ConfigurationError if a port is taken, something is not installed, or a part does not come up. What runs by
        then stays up, for `down` or the next `up`.
        """
        require_installed()
        self.folder.create()
        with self._locked():
            state = self._next_state(asked or PortChoice())
            self._end_strays(state)
            kept = dict(state.processes)
            for wave in stack_parts(self.folder, state.ports, state.environment):
                for part in wave:
                    state = self._ensure_started(part, state)
                for part in wave:
                    record = state.processes[part.name]
                    self._await_ready(part, record, kept=kept.get(part.name) == record)
            return state

    def down(self, warm_shutdown_s: float = WARM_SHUTDOWN_S) -> bool:
        """Stop everything that belongs to this stack, the worker first. Return False if nothing of it ran."""
        if not self.folder.root.is_dir():  # never created, or deleted under a stack that still runs
            return self._end_strays(StackState())
        with self._locked():
            state = self.folder.read() or StackState()
            waves = stack_parts(self.folder, state.ports, state.environment, warm_shutdown_s=warm_shutdown_s)
            ended = [self._end(part, state) for wave in reversed(waves) for part in reversed(wave)]
            strays = self._end_strays(replace_processes(state, {}))
            self._remove_containers()
            self.folder.forget()
        return any(ended) or strays

    def status(self) -> list[PartStatus]:
        """Every part and its current condition, in the order of starting."""
        state = self.folder.read() or StackState()
        parts = [part for wave in stack_parts(self.folder, state.ports, state.environment) for part in wave]
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(lambda part: self._status_of(part, state.processes.get(part.name)), parts))

    def is_running(self) -> bool:
        """Whether every part's process lives. Does not check whether it answers."""
        state = self.folder.read()
        return state is not None and bool(state.processes) and all(it.is_alive for it in state.processes.values())

    def _locked(self) -> AbstractContextManager[None]:
        return self.folder.locked(lambda: self._report(Step(Event.WAITING, detail=str(self.folder.root))))

    def _next_state(self, asked: PortChoice) -> StackState:
        """The state to reach: a running stack keeps its ports and environment, any other gets new ones."""
        state = self.folder.read() or StackState()
        alive = {name: record for name, record in state.processes.items() if record.is_alive}
        if not alive:
            ports = asked.over(Ports())
            return StackState(ports=ports, environment=self._producer_environment(ports))
        ports = asked.over(state.ports)
        if ports != state.ports:
            raise ConfigurationError(
                f"the stack in {self.folder.root} runs on other ports ({_spelled(state.ports)}): run `nanogrid down` first"
            )
        environment = state.environment
        if "worker" not in alive:
            environment = self._producer_environment(ports)
        return StackState(ports=ports, environment=environment, processes=alive)

    def _producer_environment(self, ports: Ports) -> dict[str, str]:
        return producer_environment(self.folder, ports, present_images(CANDIDATE_IMAGES))

    def _ensure_started(self, part: Part, state: StackState) -> StackState:
        """The state with this part started. It is stored at once, so that a crash right after loses nothing."""
        record = state.processes.get(part.name)
        if record is not None:
            if not any(record.is_older_than(state.processes[name]) for name in part.restarted_with):
                return state
            self._end(part, state)
        _require_free(part)
        self._report(Step(Event.STARTING, part.name, part.address))
        log = self.folder.log_path(part.name)
        _set_aside(log)
        environment = process_environment(state.environment)
        record = processes.start(part.argv, environment, self.folder.root, log)
        state = replace_processes(state, {**state.processes, part.name: record})
        self.folder.write(state)
        return state

    def _await_ready(self, part: Part, record: ProcessRecord, *, kept: bool) -> None:
        begin = time.monotonic()
        while not part.answers(record.pid):
            waited_s = time.monotonic() - begin
            if not record.is_alive or waited_s > part.ready_within_s:
                how = "does not answer" if record.is_alive else "ended during its start"
                raise ConfigurationError(f"{part.name} {how}: {self._last_words(part)}")
            time.sleep(_POLL_S)
        event = Event.KEPT if kept else Event.READY
        self._report(Step(event, part.name, part.address, time.time() - record.started_at))

    def _last_words(self, part: Part) -> str:
        log = self.folder.log_path(part.name)
        lines = log.read_text(errors="replace").split("\n")[-20:] if log.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        return f"{said[-1] if said else 'it printed nothing'} (its log: {log})"

    def _end(self, part: Part, state: StackState) -> bool:
        record = state.processes.get(part.name)
        if record is None or not record.is_alive:
            return False
        begin = time.monotonic()
        self._report(Step(Event.ENDING, part.name))
        by = processes.end(record, part.ending)
        event = Event.KILLED if by == signal.SIGKILL else Event.ENDED
        self._report(Step(event, part.name, seconds=time.monotonic() - begin))
        return True

    def _end_strays(self, state: StackState) -> bool:
        """Stop processes of this stack without a record: a killed worker's children, or a start that was not recorded."""
        known = {record.pid for record in state.processes.values()}
        strays = [stray for stray in processes.of_stack(self.folder.root) if _session_of(stray) not in known]
        for stray in strays:
            processes.end(stray, ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)))
            self._report(Step(Event.ENDED, f"leftover process {stray.pid}"))
        return bool(strays)

    def _remove_containers(self) -> None:
        """Remove containers that a killed worker left. A worker that ended by itself left none."""
        removed = remove_remains(self.folder.worker_data)
        if removed:
            self._report(Step(Event.ENDED, "containers", detail=f"{removed} of a killed worker removed"))

    def _status_of(self, part: Part, record: ProcessRecord | None) -> PartStatus:
        status = PartStatus(part.name, Condition.STOPPED, part.address, self.folder.log_path(part.name))
        if record is None:
            return status
        if not record.is_alive:
            return replace(status, condition=Condition.DIED)
        condition = Condition.RUNNING if part.answers(record.pid) else Condition.SILENT
        if condition is Condition.RUNNING and part.stands_still():
            condition = Condition.STALLED
        return replace(status, condition=condition, pid=record.pid, uptime_s=time.time() - record.started_at)


def replace_processes(state: StackState, records: dict[str, ProcessRecord]) -> StackState:
    """The same state with other processes."""
    return state.model_copy(update={"processes": records})


def _session_of(record: ProcessRecord) -> int | None:
    try:
        return os.getsid(record.pid)
    except ProcessLookupError:
        return None


def _require_free(part: Part) -> None:
    if part.port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore closed connections of a previous part
        try:
            probe.bind((LOOPBACK, part.port))
        except OSError:
            owner = processes.listener_on(part.port)
            by = f" by {owner}" if owner else ""
            raise ConfigurationError(
                f"port {part.port} for {part.name} is taken{by}: choose another with {part.port_option}"
            ) from None


def _set_aside(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _spelled(ports: Ports) -> str:
    named: Sequence[tuple[str, int]] = list(ports)
    return ", ".join(f"{name} {port}" for name, port in named)
