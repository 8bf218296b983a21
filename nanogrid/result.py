"""The result of a request: outcome, output and measurements."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import Field, JsonValue

from nanogrid.wire.model import Number, WholeNumber, Wire


class Outcome(str, Enum):
    """Why a run ended. Each result has exactly one; it is never guessed from an exit code."""

    SUCCEEDED = "SUCCEEDED"
    """The command ended with exit code 0."""
    FAILED = "FAILED"
    """The command ended with another exit code."""
    TIMED_OUT = "TIMED_OUT"
    """The run took longer than `timeout_ms`."""
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    """The kernel killed a process because of the memory limit, and the command did not end with 0."""
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    """The function wrote more to stdout or stderr than the deployment allows."""
    CANCELLED = "CANCELLED"
    """The request was cancelled before or during the run."""
    NOT_RUN = "NOT_RUN"
    """The function did not run: an invalid or expired request, unusable code, a dead letter, a failed part of a map, or a fault
    of NanoGrid after the last attempt. stderr says which."""


EXIT_CODES: dict[Outcome, int] = {
    Outcome.TIMED_OUT: 124,
    Outcome.OUT_OF_MEMORY: 137,
    Outcome.NOT_RUN: 125,
    Outcome.CANCELLED: 130,
}
"""Exit codes of `nanogrid invoke` for outcomes without an exit code of the function, as in timeout(1) and shells."""


class StartKind(str, Enum):
    """How a run got its container."""

    COLD = "cold"
    """A new container was created."""
    PREWARMED = "prewarmed"
    """A started container of the runtime without a function was used."""
    WARM = "warm"
    """The container had run the function before."""


class Phases(Wire):
    """Duration of each phase of a request in milliseconds, in order. None: the phase did not happen."""

    queue: Number | None = None
    """From sending the request to its receipt by a worker's child."""
    fetch: Number | None = None
    """Checking and downloading the code."""
    unpack: Number | None = None
    """Unpacking the code and building its layers."""
    acquire: Number | None = None
    """Waiting for a container, including its start."""
    run: Number | None = None
    """Running the function."""
    collect: Number | None = None
    """Reading output and measurements."""
    store: Number | None = None
    """Storing the result in Redis."""


class ExecutionResult(Wire):
    """The result of one request, as stored in Redis. Immutable.

    Fields have snake_case names in Python and camelCase names in JSON (`exit_code`, `exitCode`).
    """

    request_id: str
    """The id of the request."""
    function_id: str
    """The function's id. Empty if it could not be read from the request."""
    exit_code: WholeNumber
    """The exit code of the function. -1 if the function did not end by itself: timed out, cancelled, not run, ..."""
    stdout: str
    """What the function wrote to stdout, as UTF-8 with invalid bytes replaced; at most the first `output_limit_bytes` bytes."""
    stderr: str
    """What the function wrote to stderr, like `stdout`, then a line of NanoGrid's if a limit ended the run. For a function that
    did not run, the reason."""
    duration_millis: WholeNumber
    """Duration of the run in whole milliseconds. 0 if the function did not run."""
    success: bool
    """Whether the outcome is `SUCCEEDED`."""
    outcome: Outcome
    """Why the run ended."""
    value: JsonValue = None
    """The JSON value that the function returned, or wrote to the file that `NANOGRID_RESULT` names. None if there is none."""
    peak_memory_bytes: WholeNumber | None = None
    """Peak memory of this run in bytes, including the few MB of the waiting interpreter. None if it could not be read."""
    memory_limit_mb: WholeNumber | None = None
    """Memory limit of the run in MiB. The tuner may have lowered it from the requested one."""
    recommended_memory_mb: WholeNumber | None = None
    """Memory limit in MiB that the tuner recommends. None if it has no recommendation."""
    optimization_tip: str | None = None
    """One sentence about the memory limit: the recommendation, or that the run was repeated with more memory. May be None."""
    cpu_millis: WholeNumber | None = None
    """CPU time of the run in milliseconds. None if it could not be read."""
    start_kind: StartKind | None = None
    """How the run got its container. None if it got none."""
    stdout_truncated: bool = False
    """Whether the function wrote more to stdout than `stdout` has."""
    stderr_truncated: bool = False
    """Whether the function wrote more to stderr than `stderr` has."""
    phases: Phases = Field(default_factory=Phases)
    """Duration of each phase."""
    runtime: str | None = None
    """The runtime's own name, not an alias. None if it is unknown."""
    worker: str | None = None
    """Name of the worker that produced the result, such as `celery@host`. None if it is unknown."""
    container_id: str | None = None
    """Docker's id of the container. None if the function did not run."""
    attempt: WholeNumber = 1
    """Number of the attempt that produced the result, from 1."""

    def to_wire(self) -> dict[str, Any]:
        """The camelCase JSON object. Fields without a value are null."""
        return self.model_dump(mode="json", by_alias=True)

    def __json__(self) -> dict[str, Any]:
        """The object that kombu's JSON encoder writes, so that a task may return the result itself."""
        return self.to_wire()

    def __repr__(self) -> str:
        """The text that logs, events and Flower show. It has no output of the function, which may be large and secret."""
        words = [self.outcome.value, f"exit code {self.exit_code}", f"{self.duration_millis} ms"]
        if self.peak_memory_bytes is not None:
            words.append(f"peak {self.peak_memory_bytes / 2**20:.0f} MiB")
        if self.start_kind is not None:
            words.append(f"{self.start_kind.value} start")
        if self.attempt > 1:
            words.append(f"attempt {self.attempt}")
        return f"<{', '.join(words)}>"

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> ExecutionResult:
        """Read a stored result. Ignores fields of newer versions, so that clients may be older than workers.

        Raises pydantic's `ValidationError` if the object is not a result.
        """
        return cls.model_validate({key: value for key, value in data.items() if key in FIELDS})

    @property
    def shell_exit_code(self) -> int:
        """The exit code for a command that runs this function: 124 timed out, 125 not run, 130 cancelled, 137 out of memory."""
        if self.outcome in EXIT_CODES:
            return EXIT_CODES[self.outcome]
        return self.exit_code if 0 <= self.exit_code <= 255 else 1


FIELDS = frozenset(field.alias or name for name, field in ExecutionResult.model_fields.items())


def not_run(
    request_id: str,
    function_id: str,
    reason: str,
    *,
    runtime: str | None = None,
    outcome: Outcome = Outcome.NOT_RUN,
    worker: str | None = None,
    attempt: WholeNumber = 1,
    phases: Phases | None = None,
) -> ExecutionResult:
    """The result of a request whose function did not run, or did not end by itself: exit code -1 and the reason in stderr."""
    return ExecutionResult(
        request_id=request_id,
        function_id=function_id,
        runtime=runtime,
        exit_code=-1,
        stdout="",
        stderr=reason if reason.endswith("\n") else reason + "\n",
        duration_millis=0,
        success=False,
        outcome=outcome,
        worker=worker,
        attempt=attempt,
        phases=phases or Phases(),
    )
