"""One request from start to end: request → code → lease → run → result. Knows nothing of Celery, SQS or Redis.

The rule: the function's failure comes back as a result, NanoGrid's failure is raised as an error.
"""

from __future__ import annotations

import json
import logging
import math
import time

from pydantic import JsonValue

from nanogrid.errors import ContainerLostError, ContainerStartError, LimitLoweredError
from nanogrid.execution.code import CodeStore
from nanogrid.execution.code.required import HandlerModule
from nanogrid.execution.container.cgroup import Usage
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.hardening import MOUNT, Confinement, environment
from nanogrid.execution.container.report import EndReason, Result, RunReport
from nanogrid.execution.layers import LayerStore
from nanogrid.execution.observer import Ran, Watcher
from nanogrid.execution.pool.child.lease import Container, Pool
from nanogrid.execution.pool.protocol import LeaseRequest
from nanogrid.request import FunctionRequest
from nanogrid.result import ExecutionResult, Outcome, Phases
from nanogrid.settings import Settings
from nanogrid.telemetry import stages, tracing
from nanogrid.tuner.advised import NOT_TUNED, Advised
from nanogrid.wire.json_bounds import problem_of_value

log = logging.getLogger(__name__)


LONGEST_SHOWN = 20
"""Of a number, in a sentence."""

SHARE_OF_OVERHEAD = 0.75
"""So much of `overhead_s` may be over when a second run begins: what is left is for its container."""


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
        tuned: Advised = NOT_TUNED,
    ) -> ExecutionResult:
        """Run the function, under the memory limit that the tuner has for it.

        Raises LimitLoweredError where that was too little and no time is left to run again with what the request asks for,
        and a CodeError or ContainerError where NanoGrid could not do its part.
        """
        began = time.monotonic()
        runtime = self._settings.runtime_table[request.runtime]
        command: tuple[str, ...] = runtime.command
        required: str | HandlerModule = runtime.required_file
        if request.handler:
            command, required = handler_command(request.handler)
        with (
            self._code.checkout(
                request.s3_bucket, request.s3_key, sha256=request.code_sha256, required=required
            ) as code,
            self._layers.prepare(code, runtime) as prepared,
            stages.Run(request.request_id, request.function_id, attempt) as stage,
        ):
            wanted = LeaseRequest(
                request.request_id,
                request.function_id,
                runtime.image,
                command,
                environment(request, self._settings),
                str(prepared.tree),
                Confinement(tuned.limit_mb(request.memory_mb, prepared.key), request.cpus, request.network),
                key=f"{request.function_id}\0{prepared.key}",
                packages_dir=None if prepared.packages is None else str(prepared.packages),
                wait_s=self._wait_s(request, queue_ms),
            )
            stage.code_ready(
                cached=code.cached, fetch_ms=code.fetch_ms, unpack_ms=code.unpack_ms, build_ms=prepared.build_ms
            )
            watch = Watcher(request, prepared.key, learns=tuned.learns)
            tip = tuned.tip(request.memory_mb)
            lowered_mb = wanted.limits.memory_mb
            if lowered_mb == request.memory_mb:
                ran = watch.observed(self._run(request, wanted, stage))
            elif (first := self._under_less(request, wanted, watch, stage)) is not None:
                ran = first
            else:
                self._require_time(request, lowered_mb, time.monotonic() - began)
                ran = watch.observed(self._run(request, wanted.with_memory(request.memory_mb), stage), rerun=True)
                tip = rerun_tip(request.memory_mb, lowered_mb)
            phases = Phases(
                queue=_rounded(queue_ms),
                fetch=_rounded(code.fetch_ms),
                unpack=_rounded(code.unpack_ms + (prepared.build_ms or 0.0)),
                acquire=_rounded(ran.acquire_ms),
                run=_rounded(ran.run_ms),
                collect=_rounded(ran.collect_ms),
            )
            tracing.collected()
        report = ran.report
        return ExecutionResult(
            request_id=request.request_id,
            function_id=request.function_id,
            exit_code=ran.exit_code,
            stdout=_text(report.stdout.data),
            stderr=_text(report.stderr.data) + explain(ran.outcome, request, self._settings) + ran.complaint,
            duration_millis=round(report.duration_ms),
            success=ran.outcome is Outcome.SUCCEEDED,
            outcome=ran.outcome,
            value=ran.value,
            peak_memory_bytes=report.usage.peak_memory_bytes,
            memory_limit_mb=ran.limit_mb,
            recommended_memory_mb=tuned.recommended_mb(),
            optimization_tip=tip,
            cpu_millis=_cpu_millis(report.usage),
            start_kind=ran.start_kind,
            runtime=request.runtime,
            stdout_truncated=report.stdout.truncated,
            stderr_truncated=report.stderr.truncated,
            phases=phases,
            worker=self._worker,
            container_id=ran.container_id,
            attempt=attempt,
        )

    def _run(self, request: FunctionRequest, wanted: LeaseRequest, stage: stages.Run) -> Ran:
        """One run in one container."""
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
        return Ran(
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

    def _under_less(
        self, request: FunctionRequest, wanted: LeaseRequest, watch: Watcher, stage: stages.Run
    ) -> Ran | None:
        """Run with less memory than the request asks for. None where that was too little, whatever the function made of it."""
        try:
            ran = self._run(request, wanted, stage)
        except (ContainerStartError, ContainerLostError) as error:  # perhaps for want of memory: the next run tells
            watch.lost(wanted.limits.memory_mb)
            log.warning("request %s could not run with %d MiB: %s", request.request_id, wanted.limits.memory_mb, error)
            return None
        watch.observed(ran)
        if not ran.killed_for_memory:
            return ran
        log.info(
            "request %s: the tuner's %d MiB were too little; it runs again with %d",
            request.request_id, ran.limit_mb, request.memory_mb,
        )  # fmt: skip
        return None

    def _require_time(self, request: FunctionRequest, lowered_mb: int, taken_s: float) -> None:
        """Raise where Celery's time limit, which began with this delivery, could cut the second run off."""
        if taken_s > self._settings.overhead_s * SHARE_OF_OVERHEAD:
            raise LimitLoweredError(
                f"the tuner's {lowered_mb} MiB were too little after {taken_s:.0f} s, and a run with {request.memory_mb} MiB needs a new delivery"
            )

    def _wait_s(self, request: FunctionRequest, queue_ms: float | None) -> float:
        """How long the request can wait for a container: the deployment's time, or what is left of its own largest age."""
        if request.max_age_ms is None or queue_ms is None:
            return self._settings.pool_wait_s
        return max(0.0, min(self._settings.pool_wait_s, (request.max_age_ms - queue_ms) / 1000))

    def _value(self, result: Result) -> tuple[JsonValue, str]:
        """The JSON value of `NANOGRID_RESULT`, and a line for stderr where there is one that cannot be used."""
        if result.size == 0:
            return None, ""
        if result.data is None:
            limit = self._settings.value_limit_bytes
            return (
                None,
                f"nanogrid: the value in NANOGRID_RESULT has {result.size} bytes, more than the accepted {limit}\n",
            )
        return value_of(result.data)


def classify(report: RunReport, container: Container) -> tuple[Outcome, int]:
    """The one outcome of a run and its exit code: the function's own where it ended by itself, else -1.

    OUT_OF_MEMORY needs a kill by the kernel that it counted in the container's own account, and a failure: a function
    that loses a child to the OOM killer and still exits with 0 has coped. Raises ContainerLostError where the container
    went away and memory was not the reason.
    """
    if report.ended is EndReason.TIMED_OUT:
        return Outcome.TIMED_OUT, -1
    if report.ended is EndReason.OUTPUT_LIMIT:
        return Outcome.OUTPUT_LIMIT, -1
    if report.ended is EndReason.LOST or report.exit_code is None:
        if container.end is not None and container.end.oom_killed:
            return Outcome.OUT_OF_MEMORY, 137
        raise ContainerLostError(f"container {container.name} went away during the run")
    if report.exit_code == 0:
        return Outcome.SUCCEEDED, 0
    if _ran_out_of_memory(report, container):
        return Outcome.OUT_OF_MEMORY, report.exit_code
    return Outcome.FAILED, report.exit_code


def _ran_out_of_memory(report: RunReport, container: Container) -> bool:
    if report.usage.oom_kills is not None:
        return report.usage.oom_kills > 0
    container.destroy()  # the accounts cannot be read here: the engine's flag is right once the container has ended
    return container.end is not None and container.end.oom_killed


def handler_command(handler: str) -> tuple[tuple[str, ...], HandlerModule]:
    """The command that calls `module.function`, and what must be in the code for it."""
    return ("python", f"{MOUNT}/runner/call_handler.py", handler), HandlerModule.of(handler)


def explain(outcome: Outcome, request: FunctionRequest, settings: Settings) -> str:
    """One line for stderr where a limit ended the run; empty otherwise."""
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
    """The result's `optimizationTip` where the tuner's limit was too little."""
    return (
        f"run again with memoryMb = {requested_mb}: the {lowered_mb} MiB that the tuner had set were too little, "
        "which it has learned"
    )


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "replace")


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)


def _cpu_millis(usage: Usage) -> int | None:
    return None if usage.cpu_ns is None else round(usage.cpu_ns / 1e6)


def value_of(data: bytes) -> tuple[JsonValue, str]:
    """The JSON value of these bytes, and a line for stderr where something of it cannot be kept.

    JSON has neither NaN nor infinity, but Python's `json`, pandas and Lambda's serializer write them: null takes their place.
    """
    left_out: dict[str, None] = {}

    def number(text: str) -> float | None:
        value = float(text)
        return value if math.isfinite(value) else left_out.setdefault(text[:LONGEST_SHOWN])

    try:
        value = json.loads(data, parse_float=number, parse_constant=lambda text: left_out.setdefault(text))
    except (ValueError, RecursionError) as error:
        return None, f"nanogrid: the value in NANOGRID_RESULT is no JSON: {error}\n"
    if (problem := problem_of_value(value)) is not None:  # whoever reads the result could not read that
        return None, f"nanogrid: the value in NANOGRID_RESULT is left out, for it is {problem}\n"
    if not left_out:
        return value, ""
    return (
        value,
        f"nanogrid: the value holds {', '.join(list(left_out)[:3])}, which JSON cannot: null is in its place\n",
    )
