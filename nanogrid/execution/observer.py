"""The facts of one run, and how they reach the tuner."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pydantic import JsonValue

from nanogrid.execution.container.report import RunReport
from nanogrid.request import FunctionRequest
from nanogrid.result import Outcome, StartKind
from nanogrid.telemetry.counters import RERUN
from nanogrid.telemetry.events import RunEvent, count, emit


@dataclass(frozen=True)
class RunFacts:
    """One finished run in one container. `complaint` is a line for stderr about a value that cannot be used."""

    report: RunReport
    outcome: Outcome
    exit_code: int
    value: JsonValue
    complaint: str
    limit_mb: int
    start_kind: StartKind
    container_id: str
    acquire_ms: float
    run_ms: float
    collect_ms: float

    @property
    def killed_for_memory(self) -> bool:
        """Whether the kernel killed any process of the run for memory, even if the function coped with it."""
        return self.outcome is Outcome.OUT_OF_MEMORY or bool(self.report.usage.oom_kills)


@dataclass(frozen=True)
class RunObserver:
    """Reports the runs of one request to the tuner, if `learns` is set. `code` names the code with its layers."""

    request: FunctionRequest
    code: str
    learns: bool

    def ended(self, run: RunFacts, *, rerun: bool = False) -> RunFacts:
        """Report a run and return it."""
        usage = run.report.usage
        if rerun:
            count(RERUN)
        if self.learns:
            self._emit(
                run.limit_mb,
                outcome=run.outcome,
                duration_ms=run.report.duration_ms,
                cpu_ms=None if usage.cpu_ns is None else usage.cpu_ns / 1e6,
                peak_bytes=usage.peak_memory_bytes,
                killed_for_memory=run.killed_for_memory,
                rerun=rerun,
            )
        return run

    def failed_to_run(self, limit_mb: int) -> None:
        """Report a container with a lowered limit that could not run. The tuner treats that as out of memory."""
        if self.learns:
            self._emit(
                limit_mb,
                outcome=Outcome.OUT_OF_MEMORY,
                duration_ms=0.0,
                cpu_ms=None,
                peak_bytes=None,
                killed_for_memory=True,
                rerun=False,
            )

    def _emit(
        self,
        limit_mb: int,
        *,
        outcome: Outcome,
        duration_ms: float,
        cpu_ms: float | None,
        peak_bytes: int | None,
        killed_for_memory: bool,
        rerun: bool,
    ) -> None:
        emit(
            RunEvent(
                function_id=self.request.function_id,
                code=self.code,
                at_s=time.time(),
                outcome=outcome.value,
                duration_ms=duration_ms,
                cpu_ms=cpu_ms,
                peak_bytes=peak_bytes,
                limit_mb=limit_mb,
                requested_mb=self.request.memory_mb,
                killed_for_memory=killed_for_memory,
                rerun=rerun,
            )
        )
