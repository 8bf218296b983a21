"""OpenTelemetry traces of requests: one trace each, from the producer through SQS to the phases of its run.

The rule: nothing is measured here, and nothing happens before the result is stored. OpenTelemetry's own instrumentation of
Celery creates the spans of sending and running a task; the phases become spans afterwards, from the times in the result.
Off unless the setting `tracing` is on, which requires the extra `nanogrid[otel]`. The standard variables `OTEL_*` set where
spans are sent.
"""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any

from nanogrid.errors import ConfigurationError
from nanogrid.result import ExecutionResult, Outcome, StartKind
from nanogrid.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

NEEDED = (
    "opentelemetry.sdk",
    "opentelemetry.instrumentation.celery",
    "opentelemetry.exporter.otlp.proto.http",
)
CARRIED = ("traceparent", "tracestate")
"""W3C's names for the context of a trace: headers of a Celery message, SQS message attributes of a bare message."""

IN_TURN = ("fetch", "unpack", "acquire", "run", "collect")
"""The phases that follow one another without a gap. `queue` comes before them, `store` after them."""

_tracer: Tracer | None = None
_collected_ns = 0


def require(settings: Settings) -> None:
    """Raise ConfigurationError if tracing is on and OpenTelemetry is not installed."""
    if settings.tracing and not all(_is_installed(module) for module in NEEDED):
        raise ConfigurationError(
            "NANOGRID_TRACING is on, but OpenTelemetry is not installed: pip install 'nanogrid[otel]', or turn tracing off"
        )


def begin(settings: Settings) -> None:
    """Trace in this process from now on, if the setting is on. An existing OpenTelemetry provider is used.

    A worker calls this in each child, because the exporter's thread does not survive a fork.
    """
    global _tracer
    if not settings.tracing or _tracer is not None:
        return
    require(settings)
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(_exporting())
    instrumentation: Any = CeleryInstrumentor()  # type: ignore[no-untyped-call]
    if not instrumentation.is_instrumented_by_opentelemetry:
        instrumentation.instrument()
    _tracer = trace.get_tracer("nanogrid")


def end() -> None:
    """Send the remaining spans. For processes that end without Python's exit handlers, such as a worker's child."""
    if _tracer is not None:
        from opentelemetry import trace

        shutdown = getattr(trace.get_tracer_provider(), "shutdown", None)
        if shutdown is not None:
            shutdown()


def collected() -> None:
    """The run is over and its result is read. The phases are dated back from this moment."""
    global _collected_ns
    if _tracer is not None:
        _collected_ns = time.time_ns()


def stored(result: ExecutionResult) -> None:
    """The result was stored: create spans for its phases, below the span of the task that runs in this process."""
    if _tracer is None:
        return
    from opentelemetry import trace

    task = trace.get_current_span()
    if not task.is_recording():
        return
    now_ns = time.time_ns()
    task.set_attributes(_attributes(result))
    if result.outcome is Outcome.NOT_RUN:
        task.set_status(trace.StatusCode.ERROR, result.stderr.strip().partition("\n")[0])
    if result.phases.run is not None:
        _phases(_tracer, task, result)
    store_ms = result.phases.store
    if (
        store_ms and result.phases.run is not None
    ):  # Redis' clock has measured it, and it cannot have begun before `collect` ended
        store_ms = min(store_ms, (now_ns - _collected_ns) / 1e6)
    _span(_tracer, "store", now_ns, store_ms)


def _phases(tracer: Tracer, task: Span, result: ExecutionResult) -> None:
    """Create spans for the consecutive phases, from the last to the first, and for the time in the queue."""
    from opentelemetry import trace

    end_ns = _collected_ns
    for name in reversed(IN_TURN):
        begin_ns = _span(tracer, name, end_ns, getattr(result.phases, name), _of_phase(name, result))
        end_ns = begin_ns
    # A sibling of the task's span and not its child: the request was in the queue before the task began.
    parent = getattr(task, "parent", None)
    beside = None if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(parent))
    _span(tracer, "queue", end_ns, result.phases.queue, context=beside)


def _span(
    tracer: Tracer, name: str, end_ns: int, duration_ms: float | None, attributes: Any = None, context: Any = None
) -> int:
    """Create a span that ended at `end_ns` and return its begin. A phase that took no time gets none."""
    begin_ns = end_ns - int((duration_ms or 0.0) * 1e6)
    if duration_ms:
        span = tracer.start_span(name, context, attributes=attributes, start_time=begin_ns)
        if attributes and attributes.get("nanogrid.outcome", Outcome.SUCCEEDED) != Outcome.SUCCEEDED:
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR, attributes["nanogrid.outcome"])
        span.end(end_ns)
    return begin_ns


def _of_phase(name: str, result: ExecutionResult) -> dict[str, Any] | None:
    """Return the attributes of a phase's span, or None."""
    every = _attributes(result)
    match name:
        case "acquire":
            return _some(every, "start_kind", "container_id")
        case "run":
            return _some(every, "outcome", "exit_code", "cpu_ms", "peak_memory_bytes", "memory_limit_mb")
        case _:
            return None


def _some(attributes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: attributes[key] for name in names if (key := f"nanogrid.{name}") in attributes}


def _attributes(result: ExecutionResult) -> dict[str, Any]:
    """Return what a span may hold: names and numbers, never payload, environment, output or value."""
    known = {
        "request_id": result.request_id,
        "function_id": result.function_id,
        "outcome": result.outcome.value,
        "exit_code": result.exit_code,
        "start_kind": None if result.start_kind is None else result.start_kind.value,
        "attempt": result.attempt,
        "cpu_ms": result.cpu_millis,
        "peak_memory_bytes": result.peak_memory_bytes,
        "memory_limit_mb": result.memory_limit_mb,
        "container_id": result.container_id,
        "worker": result.worker,
    }
    attributes = {f"nanogrid.{name}": value for name, value in known.items() if value is not None}
    if result.start_kind is not None:
        attributes["faas.coldstart"] = result.start_kind is StartKind.COLD
    return attributes


def _exporting() -> Any:
    """Create a provider that sends spans in batches, from its own thread, by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "nanogrid"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
