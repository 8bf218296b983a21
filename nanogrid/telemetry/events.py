"""Events from a worker's processes to its main process: one JSON line per event, through a pipe that all of them inherit.

The rule: only the main process keeps counts. Children keep no count that must outlive them, and never wait: an event that
does not fit into the pipe is dropped, and the next one that fits reports how many were dropped.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

LONGEST_LINE = select.PIPE_BUF
"""Bytes that the kernel writes in one piece, so that lines of several processes never mix."""

PIPE_BYTES = 1024 * 1024
"""Room for about three thousand events: several seconds of a busy worker whose main process does not read."""

NAME_LENGTH = 200


@dataclass(frozen=True)
class RunEvent:
    """One finished run of a function in a container, whatever its outcome. The tuner learns from it.

    `at_s` is seconds since 1970. `code` names the code and its layers. `peak_bytes` is the peak of this run alone, None if it
    could not be read. `limit_mb` was in force, `requested_mb` is what the request asked for; they differ if the tuner lowered
    the limit. `killed_for_memory`: the kernel killed a process of the run, whether the function coped or not. `rerun`: it is
    the second run of a request, after a lowered limit was too small.
    """

    function_id: str
    code: str
    at_s: float
    outcome: str
    duration_ms: float
    cpu_ms: float | None
    peak_bytes: int | None
    limit_mb: int
    requested_mb: int
    killed_for_memory: bool
    rerun: bool = False


@dataclass(frozen=True)
class RequestEvent:
    """The end of a request, emitted once. `phases` holds milliseconds; a phase that did not happen is None or missing."""

    function_id: str
    runtime: str | None
    outcome: str
    start_kind: str | None = None
    phases: dict[str, float | None] = field(default_factory=dict)
    peak_bytes: int | None = None
    limit_mb: int | None = None
    attempt: int = 1


@dataclass(frozen=True)
class CountEvent:
    """Adds `amount` to a counter, with at most one label that has few values."""

    name: str
    label: str = ""
    amount: float = 1


Event = RunEvent | RequestEvent | CountEvent
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (RunEvent, RequestEvent, CountEvent)}

LOST = "events_lost"
"""Name of the event that reports how many others were dropped."""


class Emitter:
    """The writing end of the pipe. All mutable state: how many events this process dropped since the last one that fit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._dropped = 0

    def emit(self, event: Event) -> None:
        """Write an event. Never waits and never fails."""
        lines = [_line(event)]
        if self._dropped:
            lines.append(_line(CountEvent(LOST, amount=self._dropped)))
        data = b"".join(lines)
        try:
            if len(data) > LONGEST_LINE:
                raise BlockingIOError
            os.write(self._descriptor, data)
            self._dropped = 0
        except OSError:  # the pipe is full, or the main process is gone
            self._dropped += 1


_emitter: Emitter | None = None
"""The emitter of this process, as `logging` has its root logger: code that emits does not know which worker it runs in."""


def emit(event: Event) -> None:
    """Send an event to the main process of this worker. Never waits and never fails; outside of a worker it does nothing."""
    if _emitter is not None:
        _emitter.emit(event)


def count(name: str, label: str = "", amount: float = 1) -> None:
    """Add to a counter of this worker, see `nanogrid.telemetry.counters`."""
    emit(CountEvent(name, label, amount))


class EventPipe:
    """The pipe of one worker. Children that are forked after its creation emit into it; the main process reads."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError as error:  # an unprivileged user's pipes may be limited
            log.debug("the pipe for events keeps its default size: %s", error)
        self._rest = b""
        self._emitter = Emitter(self._writing)
        _use(self._emitter)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when an event arrives."""
        return self._reading

    def read(self) -> list[Event]:
        """Return all events since the last call. Does not wait."""
        chunks = [self._rest]
        while True:
            try:
                chunk = os.read(self._reading, PIPE_BYTES)
            except BlockingIOError:
                break
            if not chunk:
                break
            chunks.append(chunk)
        *lines, self._rest = b"".join(chunks).split(b"\n")
        return [event for line in lines if (event := _event(line)) is not None]

    def leave_to_parent(self) -> None:
        """In a forked child: close the reading end, which belongs to the main process alone."""
        os.close(self._reading)

    def close(self) -> None:
        """Close both ends. Events that this process emits from now on are discarded."""
        if _emitter is self._emitter:
            _use(None)
        os.close(self._reading)
        os.close(self._writing)


def _use(emitter: Emitter | None) -> None:
    global _emitter
    _emitter = emitter


def _line(event: Event) -> bytes:
    fields = dict(vars(event))
    if "function_id" in fields:
        fields["function_id"] = fields["function_id"][:NAME_LENGTH]
    return json.dumps([type(event).__name__, fields], separators=(",", ":")).encode() + b"\n"


def _event(line: bytes) -> Event | None:
    try:
        name, fields = json.loads(line)
        return KINDS[name](**fields)
    except (ValueError, TypeError, KeyError) as error:
        log.warning("an event cannot be parsed (%s): %r", error, line[:80])
        return None
