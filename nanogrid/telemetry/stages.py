"""The log lines of a request: one per stage, with the request id at a fixed position.

The rule: a line holds names, numbers and NanoGrid's own words; never payload, environment, output or value.
`nanogrid.telemetry.logs` decides the format; without it each line is text.

    received    a worker has received the message
    code        the code and its layers are on disk
    container   a container is leased
    started     the function runs
    finished    the result is stored; exactly one per request, whatever happened
    retrying    an attempt failed because of NanoGrid or a service it needs; another one follows
    answered    nothing was stored: the request had a result before
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from nanogrid.result import ExecutionResult, Outcome, StartKind

log = logging.getLogger(__name__)

NAME_LENGTH = 200
"""Names that are not validated yet are cut at this length. A validated name is never longer."""

REASON_LENGTH = 500
MOST_TEMPLATES = 100
WITH_REASON = (Outcome.NOT_RUN, Outcome.CANCELLED)
"""Outcomes whose stderr holds NanoGrid's own words, not the function's."""


class Stage:
    """One line: the attributes common to all, and `fields` by their JSON names. The text is formatted only when needed.

    `at` is the time of the stage in seconds since 1970; the line may be written a little later.
    """

    __slots__ = ("at", "attempt", "fields", "function", "name", "request")

    def __init__(self, name: str, request: str, function: str, attempt: int, fields: dict[str, Any]) -> None:
        self.at = time.time()
        self.name, self.attempt, self.fields = name, attempt, fields
        self.request, self.function = _cut(request, NAME_LENGTH), _cut(function, NAME_LENGTH)

    def __str__(self) -> str:
        words = WORDS[self.name](self.fields)
        if self.name == "retrying":
            words = f"attempt {self.attempt} {words}"
        elif self.attempt > 1:
            words += f", attempt {self.attempt}"
        function = self.function.replace(" ", r"\x20") or "-"
        text = f"{self.name:<9} {self.request}  {function}  {words}"
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class RunStages:
    """Writes the lines between a request's first and last: code, container, started.

    A warm run writes nothing before its function runs: the line about cached code is held back and written together with the
    next two. If these never come, it is written at the end of the `with` block.
    """

    def __init__(self, request: str, function: str, attempt: int) -> None:
        self._of = request, function, attempt
        self._waiting: Stage | None = None

    def __enter__(self) -> RunStages:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_waiting()

    def code_ready(self, *, cached: bool, fetch_ms: float, unpack_ms: float, build_ms: float | None) -> None:
        """The code is on disk. `build_ms` is None if nothing was built."""
        if not log.isEnabledFor(logging.INFO):
            return
        fields = {
            "cached": cached,
            "fetchMillis": _rounded(fetch_ms),
            "unpackMillis": _rounded(unpack_ms),
            "buildMillis": _rounded(build_ms),
        }
        self._waiting = Stage("code", *self._of, fields)
        if not cached or build_ms is not None:
            self._write_waiting()

    def started(
        self, *, container: str, start: StartKind, acquire_ms: float, timeout_ms: int, memory_mb: int, cpus: float
    ) -> None:
        """The function runs in this container. Called while it runs already, so that it does not wait for the log."""
        if not log.isEnabledFor(logging.INFO):
            return
        acquired = {"container": container, "startKind": start.value, "acquireMillis": _rounded(acquire_ms)}
        began = {"timeoutMs": timeout_ms, "memoryMb": memory_mb, "cpus": cpus}
        self._write_waiting()
        write(logging.INFO, Stage("container", *self._of, acquired))
        write(logging.INFO, Stage("started", *self._of, began))

    def _write_waiting(self) -> None:
        if self._waiting is not None:
            write(logging.INFO, self._waiting)
            self._waiting = None


def received(
    request: str, function: str, attempt: int, *, queue: str, deliveries: int | None, age_ms: float | None
) -> None:
    """A worker's main process has received a message. None of it is validated yet."""
    if log.isEnabledFor(logging.INFO):
        fields = {"queue": queue, "deliveries": deliveries, "ageMillis": _rounded(age_ms)}
        write(logging.INFO, Stage("received", request, function, attempt, fields))


def finished(result: ExecutionResult) -> None:
    """A result was stored, and it was the first one. A warning if the function did not run."""
    level = logging.WARNING if result.outcome is Outcome.NOT_RUN else logging.INFO
    if log.isEnabledFor(level):
        fields = {
            "outcome": result.outcome.value,
            "exitCode": result.exit_code,
            "durationMillis": result.duration_millis,
            "startKind": None if result.start_kind is None else result.start_kind.value,
            "peakMemoryBytes": result.peak_memory_bytes,
            "memoryLimitMb": result.memory_limit_mb,
            "cpuMillis": result.cpu_millis,
            "phases": dict(result.phases),
        }
        if result.outcome in WITH_REASON:
            fields["reason"] = _first_line(result.stderr)
        write(level, Stage("finished", result.request_id, result.function_id, result.attempt, fields))


def retrying(request: str, function: str, attempt: int, trouble: str, wait_s: float) -> None:
    """An attempt failed because of NanoGrid or a service it needs; the next one follows in `wait_s` seconds."""
    fields = {"trouble": _first_line(trouble), "waitSeconds": round(wait_s, 1)}
    write(logging.WARNING, Stage("retrying", request, function, attempt, fields))


def answered(result: ExecutionResult) -> None:
    """A result was not stored, because the request had one. `result` is what would have been stored."""
    fields = {"outcome": result.outcome.value}
    write(logging.INFO, Stage("answered", result.request_id, result.function_id, result.attempt, fields))


def write(level: int, stage: Stage) -> None:
    """Pass a line to logging without the search for the calling source line, which is always the same."""
    if log.isEnabledFor(level):
        log.handle(_record(level, stage))


_templates: dict[tuple[int, int, int], dict[str, Any]] = {}
"""The attributes of a record that are always the same, by level, process and thread."""


def _record(level: int, stage: Stage) -> logging.LogRecord:
    """A record of logging's. Most attributes are the same each time, and finding them takes longer than writing the line."""
    if logging.getLogRecordFactory() is not logging.LogRecord:  # a deployment's own, which may look at each record
        record = log.makeRecord(log.name, level, __file__, 0, stage, (), None)
        record.created, record.msecs = stage.at, stage.at % 1 * 1000
        return record
    key = level, os.getpid(), threading.get_ident()
    same = _templates.get(key)
    if same is None:
        if len(_templates) >= MOST_TEMPLATES:
            _templates.clear()
        same = _templates[key] = vars(log.makeRecord(log.name, level, __file__, 0, "", (), None))
    record = logging.LogRecord.__new__(logging.LogRecord)
    vars(record).update(
        same,
        msg=stage,
        created=stage.at,
        msecs=stage.at % 1 * 1000,
        relativeCreated=same["relativeCreated"] + (stage.at - same["created"]) * 1000,
    )
    return record


def _first_line(text: str) -> str:
    """Return the first line: later lines may hold foreign text, such as the end of a build log."""
    return _cut(text.strip().partition("\n")[0], REASON_LENGTH)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)


def _of_received(fields: dict[str, Any]) -> str:
    words = f"queue {fields['queue']}"
    if fields["ageMillis"] is not None:
        words += f", sent {fields['ageMillis']:.0f} ms ago"
    return words + (f", delivery {fields['deliveries']}" if (fields["deliveries"] or 1) > 1 else "")


def _of_code(fields: dict[str, Any]) -> str:
    words = "cached" if fields["cached"] else f"unpacked in {fields['unpackMillis']:.1f} ms"
    built = "" if fields["buildMillis"] is None else f", built in {fields['buildMillis']:.0f} ms"
    return f"{words}, fetch {fields['fetchMillis']:.1f} ms{built}"


def _of_container(fields: dict[str, Any]) -> str:
    return f"{fields['container']}, {fields['startKind']} start, {fields['acquireMillis']:.1f} ms"


def _of_started(fields: dict[str, Any]) -> str:
    return f"timeout {fields['timeoutMs']} ms, {fields['memoryMb']} MiB, {fields['cpus']:g} CPU"


def _of_finished(fields: dict[str, Any]) -> str:
    words = [fields["outcome"]]
    if "reason" in fields:
        words[0] += f": {fields['reason']}"
    else:
        words += [f"exit code {fields['exitCode']}", f"{fields['durationMillis']} ms"]
    if fields["startKind"]:
        words.append(f"{fields['startKind']} start")
    if fields["peakMemoryBytes"] is not None:
        words.append(f"peak {fields['peakMemoryBytes'] / 2**20:.1f} of {fields['memoryLimitMb']} MiB")
    return ", ".join(words)


WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "received": _of_received,
    "code": _of_code,
    "container": _of_container,
    "started": _of_started,
    "finished": _of_finished,
    "retrying": lambda fields: f"failed: {fields['trouble']}; again in {fields['waitSeconds']:g} s",
    "answered": lambda fields: f"{fields['outcome']} is not stored: the request had a result before",
}
"""The end of a line of text, by stage."""
