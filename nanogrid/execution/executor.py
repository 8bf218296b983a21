"""One request from start to end: request → code → lease → run → result. Knows nothing of Celery, SQS or Redis.

The rule: a function's failure is returned as a result, NanoGrid's failure is raised as an error.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import JsonValue

from nanogrid.errors import ContainerLostError, ContainerStartError, LimitLoweredError
from nanogrid.execution.code import Code, CodeStore
from nanogrid.execution.code.required import HandlerModule
from nanogrid.execution.container.cgroup import Usage
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.hardening import MOUNT, Confinement, environment
from nanogrid.execution.container.report import EndReason, Result, RunReport
from nanogrid.execution.layers import LayeredCode, LayerStore
from nanogrid.execution.observer import RunFacts, RunObserver
from nanogrid.execution.pool.child.lease import Container, Pool
from nanogrid.execution.pool.protocol import LeaseRequest
from nanogrid.request import FunctionRequest
from nanogrid.result import ExecutionResult, Outcome, Phases
from nanogrid.runtimes import Runtime
from nanogrid.settings import Settings
from nanogrid.telemetry import stages, tracing
from nanogrid.tuner.decision import NOT_TUNED, Decision
from nanogrid.wire.json_bounds import problem_of_value

log = logging.getLogger(__name__)


LONGEST_SHOWN = 20
"""Characters of a number that a sentence shows."""

SHARE_OF_OVERHEAD = 0.75
"""A re-run starts only if less than this share of `overhead_s` has passed: its container needs the rest."""


@dataclass(frozen=True)
class ReadyCode:
    """The code of a request and its layers on disk, and the command that runs it."""

    runtime: Runtime
    command: tuple[str, ...]
    code: Code
    layers: LayeredCode


class Executor:
    """Runs requests, one at a time, with the parts of one worker."""

    def __init__(self, settings: Settings, pool: Pool, worker: str) -> None:
        self._settings = settings
        self._pool = pool
        self._code = CodeStore(settings)
        self._layers = LayerStore(settings, Engine(settings))
        self._worker = worker

    def execute(
        self,
        request: FunctionRequest,
        *,
        attempt: int = 1,
        queue_ms: float | None = None,
        decision: Decision = NOT_TUNED,
    ) -> ExecutionResult:
        """Run the function under the memory limit that the tuner decided on.

        Raises LimitLoweredError if that limit was too small and no time is left for a run with the requested memory, and a
        CodeError or ContainerError if NanoGrid could not do its part.
        """
        began = time.monotonic()
        with (
            self._ready_code(request, queue_ms) as ready,
            stages.RunStages(request.request_id, request.function_id, attempt) as stage,
        ):
            wanted = self._lease_request(request, ready, decision, queue_ms)
            stage.code_ready(
                cached=ready.code.cached,
                fetch_ms=ready.code.fetch_ms,
                unpack_ms=ready.code.unpack_ms,
                build_ms=ready.layers.build_ms,
            )
            observer = RunObserver(request, ready.layers.key, learns=decision.learns)
            run, tip = self._run_within_limits(request, wanted, decision, observer, stage, began)
            phases = _phases(ready, run, queue_ms)
            tracing.collected()
        return self._result(request, run, phases, decision.recommended_mb(), tip, attempt)

    # -- the code

    @contextmanager
    def _ready_code(self, request: FunctionRequest, queue_ms: float | None) -> Iterator[ReadyCode]:
        """Keep the request's code and layers on disk until the block ends."""
        runtime = self._settings.runtime_table[request.runtime]
        command: tuple[str, ...] = runtime.command
        required: str | HandlerModule = runtime.required_file
        if request.handler:
            command, required = handler_command(request.handler)
        with (
            self._code.checkout(
                request.s3_bucket,
                request.s3_key,
                sha256=request.code_sha256,
                sent_at=None if queue_ms is None else time.time() - queue_ms / 1000,
                required=required,
            ) as code,
            self._layers.prepare(code, runtime) as layers,
        ):
            yield ReadyCode(runtime, command, code, layers)

    def _lease_request(
        self, request: FunctionRequest, ready: ReadyCode, decision: Decision, queue_ms: float | None
    ) -> LeaseRequest:
        layers = ready.layers
        return LeaseRequest(
            request.request_id,
            request.function_id,
            ready.runtime.image,
            ready.command,
            environment(request, self._settings),
            str(layers.tree),
            Confinement(decision.limit_mb(request.memory_mb, layers.key), request.cpus, request.network),
            key=f"{request.function_id}\0{layers.key}",
            packages_dir=None if layers.packages is None else str(layers.packages),
            wait_s=self._wait_s(request, queue_ms),
        )

    def _wait_s(self, request: FunctionRequest, queue_ms: float | None) -> float:
        """Return how long the request may wait for a container: the setting, or less if its maximum age comes first."""
        if request.max_age_ms is None or queue_ms is None:
            return self._settings.pool_wait_s
        return max(0.0, min(self._settings.pool_wait_s, (request.max_age_ms - queue_ms) / 1000))

    # -- the run

    def _run_within_limits(
        self,
        request: FunctionRequest,
        wanted: LeaseRequest,
        decision: Decision,
        observer: RunObserver,
        stage: stages.RunStages,
        began: float,
    ) -> tuple[RunFacts, str | None]:
        """Run the function, and run it again with the requested memory if a lowered limit was too small.

        Returns the run that counts, and the tip for the result.
        """
        lowered_mb = wanted.limits.memory_mb
        if lowered_mb == request.memory_mb:
            return observer.ended(self._run(request, wanted, stage)), decision.tip(request.memory_mb)
        if (first := self._run_lowered(request, wanted, observer, stage)) is not None:
            return first, decision.tip(request.memory_mb)
        self._require_time(request, lowered_mb, time.monotonic() - began)
        run = self._run(request, wanted.with_memory(request.memory_mb), stage)
        return observer.ended(run, rerun=True), rerun_tip(request.memory_mb, lowered_mb)

    def _run_lowered(
        self, request: FunctionRequest, wanted: LeaseRequest, observer: RunObserver, stage: stages.RunStages
    ) -> RunFacts | None:
        """Run with less memory than the request asks for. Returns None if that was too small, even if the function coped."""
        try:
            run = self._run(request, wanted, stage)
        except (ContainerStartError, ContainerLostError) as error:  # too little memory may be the reason: run again
            observer.failed_to_run(wanted.limits.memory_mb)
            log.warning("request %s could not run with %d MiB: %s", request.request_id, wanted.limits.memory_mb, error)
            return None
        observer.ended(run)
        if not run.killed_for_memory:
            return run
        log.info(
            "request %s: the tuner's limit of %d MiB was too small; it runs again with %d MiB",
            request.request_id, run.limit_mb, request.memory_mb,
        )  # fmt: skip
        return None

    def _require_time(self, request: FunctionRequest, lowered_mb: int, taken_s: float) -> None:
        """Raise if Celery's time limit, which runs since the delivery began, could cut the second run off."""
        if taken_s > self._settings.overhead_s * SHARE_OF_OVERHEAD:
            raise LimitLoweredError(
                f"the tuner's limit of {lowered_mb} MiB was too small, and after {taken_s:.0f} s no time is left for a run with "
                f"{request.memory_mb} MiB in this delivery"
            )

    def _run(self, request: FunctionRequest, wanted: LeaseRequest, stage: stages.RunStages) -> RunFacts:
        """Run the function once, in one container."""
        asked = time.monotonic()
        with self._pool.lease(wanted, request.input) as container:
            acquired = time.monotonic()
            report = container.run(
                timeout_s=request.timeout_ms / 1000,
                begun=lambda: stage.started(
                    container=container.name,
                    start=container.start_kind,
                    acquire_ms=(acquired - asked) * 1000,
                    timeout_ms=request.timeout_ms,
                    memory_mb=wanted.limits.memory_mb,
                    cpus=wanted.limits.cpus,
                ),
            )
            ended = time.monotonic()
            outcome, exit_code = classify(report, container)
            value, complaint = self._value(report.result)
        return RunFacts(
            report=report,
            outcome=outcome,
            exit_code=exit_code,
            value=value,
            complaint=complaint,
            limit_mb=wanted.limits.memory_mb,
            start_kind=container.start_kind,
            container_id=container.id,
            acquire_ms=(acquired - asked) * 1000,
            run_ms=(ended - acquired) * 1000,
            collect_ms=(time.monotonic() - ended) * 1000,
        )

    def _value(self, result: Result) -> tuple[JsonValue, str]:
        """Return the JSON value of `NANOGRID_RESULT`, and a line for stderr if it cannot be used."""
        if result.size == 0:
            return None, ""
        if result.data is None:
            limit = self._settings.value_limit_bytes
            return (
                None,
                f"nanogrid: the value in NANOGRID_RESULT has {result.size} bytes, more than the accepted {limit}\n",
            )
        return value_of(result.data)

    # -- the result

    def _result(
        self,
        request: FunctionRequest,
        run: RunFacts,
        phases: Phases,
        recommended_mb: int | None,
        tip: str | None,
        attempt: int,
    ) -> ExecutionResult:
        report = run.report
        return ExecutionResult(
            request_id=request.request_id,
            function_id=request.function_id,
            exit_code=run.exit_code,
            stdout=_text(report.stdout.data),
            stderr=_text(report.stderr.data) + explain(run.outcome, request, self._settings) + run.complaint,
            duration_millis=round(report.duration_ms),
            success=run.outcome is Outcome.SUCCEEDED,
            outcome=run.outcome,
            value=run.value,
            peak_memory_bytes=report.usage.peak_memory_bytes,
            memory_limit_mb=run.limit_mb,
            recommended_memory_mb=recommended_mb,
            optimization_tip=tip,
            cpu_millis=_cpu_millis(report.usage),
            start_kind=run.start_kind,
            runtime=request.runtime,
            stdout_truncated=report.stdout.truncated,
            stderr_truncated=report.stderr.truncated,
            phases=phases,
            worker=self._worker,
            container_id=run.container_id,
            attempt=attempt,
        )


def _phases(ready: ReadyCode, run: RunFacts, queue_ms: float | None) -> Phases:
    code, layers = ready.code, ready.layers
    return Phases(
        queue=_rounded(queue_ms),
        fetch=_rounded(code.fetch_ms),
        unpack=_rounded(code.unpack_ms + (layers.build_ms or 0.0)),
        acquire=_rounded(run.acquire_ms),
        run=_rounded(run.run_ms),
        collect=_rounded(run.collect_ms),
    )


def classify(report: RunReport, container: Container) -> tuple[Outcome, int]:
    """Return the outcome of a run and its exit code: the function's own if it exited by itself, else -1.

    OUT_OF_MEMORY requires a failure and a kill that the kernel counted for this container: a function that loses a child to
    the OOM killer and still exits with 0 has coped. Raises ContainerLostError if the container disappeared and memory was
    not the reason.
    """
    if report.ended is EndReason.TIMED_OUT:
        return Outcome.TIMED_OUT, -1
    if report.ended is EndReason.OUTPUT_LIMIT:
        return Outcome.OUTPUT_LIMIT, -1
    if report.ended is EndReason.LOST or report.exit_code is None:
        if container.end is not None and container.end.oom_killed:
            return Outcome.OUT_OF_MEMORY, 137
        raise ContainerLostError(f"container {container.name} disappeared during the run")
    if report.exit_code == 0:
        return Outcome.SUCCEEDED, 0
    if _ran_out_of_memory(report, container):
        return Outcome.OUT_OF_MEMORY, report.exit_code
    return Outcome.FAILED, report.exit_code


def _ran_out_of_memory(report: RunReport, container: Container) -> bool:
    if report.usage.oom_kills is not None:
        return report.usage.oom_kills > 0
    container.destroy()  # without the cgroup's counters, the engine's flag decides, which is right once the container has ended
    return container.end is not None and container.end.oom_killed


def handler_command(handler: str) -> tuple[tuple[str, ...], HandlerModule]:
    """Return the command that calls `module.function`, and the module that the code must contain for it."""
    return ("python", f"{MOUNT}/runner/call_handler.py", handler), HandlerModule.of(handler)


def explain(outcome: Outcome, request: FunctionRequest, settings: Settings) -> str:
    """Return one line for stderr if a limit ended the run, else an empty string."""
    match outcome:
        case Outcome.TIMED_OUT:
            return f"\nnanogrid: ended after timeoutMs = {request.timeout_ms}\n"
        case Outcome.OUT_OF_MEMORY:
            return f"\nnanogrid: out of memory with memoryMb = {request.memory_mb} (/workspace and /tmp count)\n"
        case Outcome.OUTPUT_LIMIT:
            return f"\nnanogrid: ended because it wrote more than {settings.output_limit_bytes} bytes of output\n"
        case _:
            return ""


def rerun_tip(requested_mb: int, lowered_mb: int) -> str:
    """Return the result's `optimizationTip` for a run that was repeated because the tuner's limit was too small."""
    return (
        f"repeated with memoryMb = {requested_mb}: the tuner's limit of {lowered_mb} MiB was too small, "
        "and the tuner has learned that"
    )


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "replace")


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)


def _cpu_millis(usage: Usage) -> int | None:
    return None if usage.cpu_ns is None else round(usage.cpu_ns / 1e6)


def value_of(data: bytes) -> tuple[JsonValue, str]:
    """Return the JSON value of these bytes, and a line for stderr if any part of it cannot be kept.

    JSON has neither NaN nor infinity, but Python's `json`, pandas and Lambda's serializer write them. They become null.
    """
    left_out: dict[str, None] = {}

    def number(text: str) -> float | None:
        value = float(text)
        return value if math.isfinite(value) else left_out.setdefault(text[:LONGEST_SHOWN])

    try:
        value = json.loads(data, parse_float=number, parse_constant=lambda text: left_out.setdefault(text))
    except (ValueError, RecursionError) as error:
        return None, f"nanogrid: the value in NANOGRID_RESULT is not JSON: {error}\n"
    if (problem := problem_of_value(value)) is not None:  # readers of the result could not parse it
        return None, f"nanogrid: the value in NANOGRID_RESULT is left out because it is {problem}\n"
    if not left_out:
        return value, ""
    return (
        value,
        f"nanogrid: the value holds {', '.join(list(left_out)[:3])}, which JSON does not have; replaced by null\n",
    )
