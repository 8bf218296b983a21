"""What became of a request: outcome, output and measurements. The last noun of message → request → code → container → result."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import Field, JsonValue

from nanogrid.wire.model import Wire


class Outcome(str, Enum):
    """Why a run ended. Exactly one, and never guessed from an exit code."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    CANCELLED = "CANCELLED"
    NOT_RUN = "NOT_RUN"


EXIT_CODES: dict[Outcome, int] = {
    Outcome.TIMED_OUT: 124,
    Outcome.OUT_OF_MEMORY: 137,
    Outcome.NOT_RUN: 125,
    Outcome.CANCELLED: 130,
}
"""Exit codes of `nanogrid invoke` where the function has none of its own (as timeout(1) and the shells use them)."""


class StartKind(str, Enum):
    """Where the container came from."""

    COLD = "cold"
    PREWARMED = "prewarmed"
    WARM = "warm"


class Phases(Wire):
    """Milliseconds of each phase of a request, in their order. None: did not take place."""

    queue: float | None = None
    fetch: float | None = None
    unpack: float | None = None
    acquire: float | None = None
    run: float | None = None
    collect: float | None = None
    store: float | None = None


class ExecutionResult(Wire):
    """The result of one request, as it stands in Redis.

    `exit_code` is the function's own; -1 where the function was not run to its end by itself (timed out, cancelled, not
    run, ...). `stdout` and `stderr` are UTF-8 with invalid bytes replaced; the first `output_limit_bytes` bytes of each
    are kept, and the flags say when more came. Memory is the peak of this run in bytes, None where it could not be read;
    `memory_limit_mb` was in force, which the tuner may have lowered from what was requested.
    """

    request_id: str
    function_id: str
    exit_code: int
    stdout: str
    stderr: str
    duration_millis: int
    success: bool
    outcome: Outcome
    value: JsonValue = None
    peak_memory_bytes: int | None = None
    memory_limit_mb: int | None = None
    recommended_memory_mb: int | None = None
    optimization_tip: str | None = None
    cpu_millis: int | None = None
    start_kind: StartKind | None = None
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    phases: Phases = Field(default_factory=Phases)
    runtime: str | None = None
    worker: str | None = None
    container_id: str | None = None
    attempt: int = 1

    def to_wire(self) -> dict[str, Any]:
        """The camelCase JSON object. Fields that could not be filled are null."""
        return self.model_dump(mode="json", by_alias=True)

    def __json__(self) -> dict[str, Any]:
        """What kombu's JSON encoder asks for: a task may return the result itself."""
        return self.to_wire()

    def __repr__(self) -> str:
        """What logs, events and Flower show: no output of the function, which may be large and secret."""
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
        """Read a stored result. Fields of a newer NanoGrid are left out, so that clients may be older than workers."""
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return cls.model_validate({key: value for key, value in data.items() if key in known})

    @property
    def shell_exit_code(self) -> int:
        """What a command that ran this function exits with: 124 timed out, 137 out of memory, 125 not run."""
        if self.outcome in EXIT_CODES:
            return EXIT_CODES[self.outcome]
        return self.exit_code if 0 <= self.exit_code <= 255 else 1


def not_run(
    request_id: str,
    function_id: str,
    reason: str,
    *,
    runtime: str | None = None,
    outcome: Outcome = Outcome.NOT_RUN,
    worker: str | None = None,
    attempt: int = 1,
    phases: Phases | None = None,
) -> ExecutionResult:
    """The result of a request whose function was not run, or not to an end of its own: exit code -1, the reason in stderr."""
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
