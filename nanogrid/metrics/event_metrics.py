"""Counters and histograms of the events of a worker's processes: a consumer of the event thread.

The rule: every series exists from the start, with value zero, so that its first event is visible as an increase.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from nanogrid.result import Outcome, Phases
from nanogrid.settings import Settings
from nanogrid.telemetry import counters
from nanogrid.telemetry.events import LOST, CountEvent, Event, RequestEvent, RunEvent

log = logging.getLogger(__name__)

MIB = 1024 * 1024
OTHER = "other"
"""The label of an unknown runtime, and of a value that came after MOST_VALUES others."""

MOST_VALUES = 20
"""The largest number of values of a label, besides those known here."""

DURATION_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
MEMORY_BUCKETS_BYTES = tuple(MIB * 2**power for power in range(2, 14))
LOWERED, KEPT = "lowered", "kept"

Count = Callable[[CountEvent], None]
Metric = TypeVar("Metric")


class EventMetrics:
    """Counts batches of events. Created once per registry; one thread calls it, any may read."""

    def __init__(self, registry: CollectorRegistry, settings: Settings) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._table = settings.runtime_table
        runtimes = [*(name for name, _ in self._table.items()), OTHER]
        self._ended = _counter(
            registry, "requests_ended", "Requests that ended, by runtime and outcome.", runtime=runtimes,
            outcome=[outcome.value for outcome in Outcome],
        )  # fmt: skip
        self._phases = _histogram(
            registry, "request_phase_seconds", "Time that requests spent in each phase.", DURATION_BUCKETS_S,
            phase=list(Phases.model_fields), runtime=runtimes,
        )  # fmt: skip
        self._peak = _histogram(
            registry, "request_memory_peak_bytes", "Peak memory of each run.", MEMORY_BUCKETS_BYTES, runtime=runtimes
        )
        self._limit = _histogram(
            registry, "request_memory_limit_bytes", "Memory limit of each run.", MEMORY_BUCKETS_BYTES, runtime=runtimes
        )
        self._cpu = _counter(registry, "run_cpu_seconds", "CPU time of runs that the tuner learns from.")
        self._killed = _counter(
            registry, "runs_killed_for_memory",
            "Runs that the tuner learns from in which the kernel killed a process for memory, whether the function coped or not.",
        )  # fmt: skip
        self._byte_seconds = _counter(
            registry, "run_memory_byte_seconds",
            "Memory times duration of runs that the tuner learns from and whose peak is known: requested, limit, and peak.",
            of=["requested", "limit", "peak"],
        )  # fmt: skip
        self._decisions = _counter(
            registry, "tuner_decisions",
            "Memory limits of runs that the tuner learns from: lowered by it, or kept as requested.",
            decision=[LOWERED, KEPT],
        )  # fmt: skip
        self._counts = _counts(registry)
        self._unknown: set[str] = set()

    def __call__(self, events: Sequence[Event]) -> None:
        """Count a batch."""
        for event in events:
            match event:
                case RequestEvent():
                    self._count_request(event)
                case RunEvent():
                    self._count_run(event)
                case CountEvent():
                    self._add(event)

    def _count_request(self, event: RequestEvent) -> None:
        runtime = (self._table.canonical(event.runtime) if event.runtime else None) or OTHER
        self._ended[runtime, event.outcome].inc()
        for phase, duration_ms in event.phases.items():
            if duration_ms is not None:
                self._phases[phase, runtime].observe(duration_ms / 1000)
        if event.peak_bytes is not None:
            self._peak[runtime,].observe(event.peak_bytes)
        if event.limit_mb is not None:
            self._limit[runtime,].observe(event.limit_mb * MIB)

    def _count_run(self, event: RunEvent) -> None:
        if not event.rerun:  # a re-run is not a decision of the tuner
            self._decisions[LOWERED if event.limit_mb < event.requested_mb else KEPT,].inc()
        if event.cpu_ms is not None:
            self._cpu[()].inc(event.cpu_ms / 1000)
        if event.killed_for_memory:
            self._killed[()].inc()
        if event.peak_bytes is not None:
            duration_s = event.duration_ms / 1000
            self._byte_seconds["requested",].inc(event.requested_mb * MIB * duration_s)
            self._byte_seconds["limit",].inc(event.limit_mb * MIB * duration_s)
            self._byte_seconds["peak",].inc(event.peak_bytes * duration_s)

    def _add(self, event: CountEvent) -> None:
        count = self._counts.get(event.name)
        if count is not None:
            count(event)
        elif event.name not in self._unknown:
            self._unknown.add(event.name)
            log.warning("events named %r are not counted: they have no metric", event.name)


def _counts(registry: CollectorRegistry) -> dict[str, Count]:
    """Return, by the name of an event, how it is counted."""
    lookups = _counter(
        registry, "cache_lookups", "Cache lookups of code and layers.",
        cache=["code", "layers"], result=[counters.HIT, counters.MISS],
    )  # fmt: skip
    builds = _histogram(
        registry, "layer_build_seconds", "Duration of layer builds.", DURATION_BUCKETS_S,
        result=[counters.BUILT, counters.FAILED],
    )  # fmt: skip
    return {
        counters.CODE_LOOKUP: lambda event: lookups["code", event.label].inc(event.amount),
        counters.LAYER_LOOKUP: lambda event: lookups["layers", event.label].inc(event.amount),
        counters.LAYER_BUILD: lambda event: builds[event.label,].observe(event.amount),
        counters.S3_BYTES: _plain(registry, "s3_downloaded_bytes", "Bytes of archives downloaded from S3."),
        counters.ATTEMPT_FAILED: _labelled(
            registry, "attempts_failed", "Attempts that failed because of NanoGrid, S3, Docker or Redis.",
            "cause", counters.CAUSES,
        ),
        counters.RETRY: _plain(registry, "retries", "Requests that were sent again for another attempt."),
        counters.GAVE_UP: _plain(registry, "requests_given_up", "Requests whose last attempt failed."),
        counters.DUPLICATE: _labelled(
            registry, "duplicates", "Deliveries of requests that had a result (answered) or ran elsewhere (waited).",
            "end", (counters.ANSWERED, counters.WAITED),
        ),
        counters.DEAD_LETTER: _plain(
            registry, "dead_letters_answered", "Requests in a dead-letter queue whose result this worker stored."
        ),
        counters.RERUN: _plain(
            registry, "tuner_reruns", "Runs that were repeated because the tuner's limit was too small."
        ),
        counters.NOT_APPENDED: _plain(
            registry, "stream_append_failures", "Results that could not be appended to the results stream."
        ),
        LOST: _plain(registry, "events_lost", "Events that children dropped: the other counters lack them."),
    }  # fmt: skip


def _plain(registry: CollectorRegistry, name: str, text: str) -> Count:
    series = _counter(registry, name, text)
    return lambda event: series[()].inc(event.amount)


def _labelled(registry: CollectorRegistry, name: str, text: str, label: str, values: Iterable[str]) -> Count:
    """Count with one label. Unknown values are accepted up to a limit; beyond it they count as OTHER."""
    known = set(values)
    series = _counter(registry, name, text, **{label: [*values]})
    most = len(known) + MOST_VALUES

    def count(event: CountEvent) -> None:
        value = event.label
        if value not in known:
            if len(known) < most:
                known.add(value)
            else:
                value = OTHER
        series[value,].inc(event.amount)

    return count


def _counter(registry: CollectorRegistry, name: str, text: str, **labels: Sequence[str]) -> _Series[Counter]:
    made = Counter(f"nanogrid_{name}_total", text, list(labels), registry=registry)
    return _Series(made, made.labels, labels)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: Sequence[float], **labels: Sequence[str]
) -> _Series[Histogram]:
    made = Histogram(f"nanogrid_{name}", text, list(labels), registry=registry, buckets=buckets)
    return _Series(made, made.labels, labels)


class _Series(dict[tuple[str, ...], Metric]):
    """The series of a metric by the values of its labels. A lookup is faster than `labels`.

    Every combination exists from the start. A metric without labels has one series, under ().
    """

    def __init__(self, metric: Metric, find: Callable[..., Metric], labels: dict[str, Sequence[str]]) -> None:
        super().__init__({} if labels else {(): metric})
        self._find = find
        for values in itertools.product(*labels.values()):
            self[values]

    def __missing__(self, values: tuple[str, ...]) -> Metric:
        self[values] = found = self._find(*values)
        return found
