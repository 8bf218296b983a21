"""What a worker's processes tell its main process of their work: one JSON line per event, through a pipe that all of them have.

The rule: one writer of numbers. Children count nothing that has to outlive them and wait for nobody: an event that the pipe
has no room for is dropped, and the next one that fits says how many were.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
from dataclasses import dataclass, field
from typing import ClassVar

log = logging.getLogger(__name__)

LONGEST_LINE = select.PIPE_BUF
"""Bytes that the kernel writes in one piece, so that lines of several processes never mix."""

PIPE_BYTES = 1024 * 1024
"""Room for about three thousand events: several seconds of a busy worker whose main process stands still."""

NAME_LENGTH = 200


@dataclass(frozen=True)
class RunEvent:
    """One run of a function in a container, to whatever end: what the tuner learns from.

    `at_s` is seconds since 1970. `code` names the code and its layers. `peak_bytes` is that of this run alone, None where it
    could not be read. `limit_mb` was in force, `requested_mb` is what the request asked for; they differ where the tuner
    lowered the limit. `killed_for_memory`: the kernel ended a process of the run, whether the function coped or not. `rerun`:
    it is the second run of a request whose first one was killed under a lowered limit.
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
    """The one end of a request: what is counted. Milliseconds by phase; None and missing: did not take place."""

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
    """Something that is counted by its name, with at most one label whose values are few."""

    name: str
    label: str = ""
    amount: float = 1


Event = RunEvent | RequestEvent | CountEvent
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (RunEvent, RequestEvent, CountEvent)}

LOST = "events_lost"
"""Name of the event that says how many others were dropped."""


class _Writer:
    """The end that tells. All mutable state: the descriptor, and how many events this process had to drop."""

    descriptor: ClassVar[int | None] = None
    dropped: ClassVar[int] = 0


def emit(event: Event) -> None:
    """Tell the main process of this worker. Never waits and never fails; outside of a worker it does nothing."""
    if _Writer.descriptor is None:
        return
    lines = [_line(event)]
    if _Writer.dropped:
        lines.append(_line(CountEvent(LOST, amount=_Writer.dropped)))
    data = b"".join(lines)
    try:
        if len(data) > LONGEST_LINE:
            raise BlockingIOError
        os.write(_Writer.descriptor, data)
        _Writer.dropped = 0
    except OSError:  # full, or the main process is gone
        _Writer.dropped += 1


def count(name: str, label: str = "", amount: float = 1) -> None:
    """Tell that something happened that is counted."""
    emit(CountEvent(name, label, amount))


class EventPipe:
    """The main process's end. Making it opens the pipe, so that children that are forked from then on can tell."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError as error:  # an unprivileged user's pipes may be smaller
            log.debug("the pipe for events stays small: %s", error)
        self._rest = b""
        _Writer.descriptor = self._writing

    def fileno(self) -> int:
        """The descriptor that is readable when somebody told something."""
        return self._reading

    def read(self) -> list[Event]:
        """All that was told since. Does not wait."""
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
        """Close both ends: from now on nothing that this process tells is heard."""
        if _Writer.descriptor == self._writing:
            _Writer.descriptor = None
        os.close(self._reading)
        os.close(self._writing)


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
        log.warning("an event that was told cannot be understood (%s): %r", error, line[:80])
        return None
