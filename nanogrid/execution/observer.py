"""What one run gave, and how it is told to those who learn from runs."""

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
    """One run in one container, to its end. `complaint` is a line for stderr about a value that cannot be used."""

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
        """Whether the kernel ended any process of the run for memory, also one whose end the function coped with."""
        return self.outcome is Outcome.OUT_OF_MEMORY or bool(self.report.usage.oom_kills)


@dataclass(frozen=True)
class RunObserver:
    """Tells the runs of one request. `code` names the code with its layers; `learns`: somebody wants to know."""

    request: FunctionRequest
    code: str
    learns: bool

    def observed(self, ran: RunFacts, *, rerun: bool = False) -> RunFacts:
        """Tell a run, and hand it on."""
        usage = ran.report.usage
        if rerun:
            count(RERUN)
        if self.learns:
            self._tell(
                ran.limit_mb,
                outcome=ran.outcome,
                duration_ms=ran.report.duration_ms,
                cpu_ms=None if usage.cpu_ns is None else usage.cpu_ns / 1e6,
                peak_bytes=usage.peak_memory_bytes,
                killed_for_memory=ran.killed_for_memory,
                rerun=rerun,
            )
        return ran

    def lost(self, limit_mb: int) -> None:
        """Tell that a container with less memory than was asked for could not be used, as if it had been for that."""
        if self.learns:
            self._tell(
                limit_mb,
                outcome=Outcome.OUT_OF_MEMORY,
                duration_ms=0.0,
                cpu_ms=None,
                peak_bytes=None,
                killed_for_memory=True,
                rerun=False,
            )

    def _tell(
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
