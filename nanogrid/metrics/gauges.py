"""Current values, read at each scrape.

The rule: a scrape reads memory only, and a part that fails does not hide the others' values.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nanogrid.execution.code.cache import CacheUsage
from nanogrid.execution.pool.owner.pool_counters import GIVEN_UP, GRANTED, Eviction, Leak, PoolCounter
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.states import State
from nanogrid.metrics.health import Disk, Health
from nanogrid.metrics.queue_depths import QueueDepths
from nanogrid.sqs.transport.poll_status import poll_statuses

log = logging.getLogger(__name__)

VERSION: str = sys.modules["nanogrid"].__version__
"""Taken from the loaded module: for the import contract, importing the package counts as importing all that it exports."""

MIB = 1024 * 1024
Part = Callable[[], Iterable[Metric]]


class Gauges(Collector):
    """Collects the metrics of its parts, one after the other."""

    def __init__(self, registry: CollectorRegistry, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._failures = 0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all parts that can be read."""
        for part in self._parts:
            try:
                yield from list(part())
            except Exception:
                self._failures += 1
                log.exception("a part of the metrics could not be read")
        yield _counter("collect_failures", "Parts of a scrape that could not be read.", self._failures)


def build_info() -> Iterator[Metric]:
    """Report the version."""
    yield _gauges(
        "build_info",
        "Always 1; the labels say which NanoGrid runs here.",
        ("version", "python"),
        {(VERSION, platform.python_version()): 1},
    )


def of_worker(ready: Callable[[], bool], concurrency: Callable[[], int], active: Callable[[], int]) -> Part:
    """Report whether the worker accepts requests, and how many it runs."""

    def read() -> Iterator[Metric]:
        yield _gauge(
            "ready",
            "1 while the worker reads its queues and its children accept requests; 0 while it starts, drains or is stalled, or SQS fails.",
            ready(),
        )
        yield _gauge("worker_children", "Requests that the worker can run at once.", concurrency())
        yield _gauge("worker_requests_active", "Requests that children are running.", active())

    return read


def of_stalls(stalled: Callable[[], bool], mends: Callable[[], int]) -> Part:
    """Report whether the worker is stalled, and how often it repaired itself."""

    def read() -> Iterator[Metric]:
        yield _gauge(
            "worker_stalled",
            "1 while the worker holds requests and has free children, but no child starts one.",
            stalled(),
        )
        yield _counter("worker_mends", "How often the worker repaired its pool of children.", mends())

    return read


def of_pool(stock: Stock) -> Part:
    """The containers by state, and the counters of the pool."""

    def read() -> Iterator[Metric]:
        views = stock.views()
        containers = [view.pooled for view in views]
        states = Counter(view.state for view in views)
        yield _by("pool_containers", "Containers by state.", "state", {s.value: states[s] for s in State})
        paused = sum(pooled.paused for pooled in containers)
        yield _gauge("pool_containers_paused", "Idle and prewarmed containers that are paused.", paused)
        memory_mb = sum(pooled.facts.memory_mb for pooled in containers if pooled.state is not State.ENDING)
        yield _gauge(
            "pool_memory_bytes",
            "Memory as the pool counts it: limits of containers in use, actual use of the others.",
            memory_mb * MIB,
        )
        yield _gauge("pool_limit_memory_bytes", "Memory that the pool may use.", stock.bounds.memory_mb * MIB)
        yield _gauge("pool_limit_containers", "Containers that the pool may have.", stock.bounds.containers)
        yield _gauge("pool_waiters", "Requests that wait for a container now.", stock.waiting())
        starts = {kind.value: count for kind, count in stock.starts().items()}
        yield _counters("starts", "Containers leased, by kind of start.", "kind", starts)
        counters = stock.counters
        for name, text, what, label, values in (
            ("pool_evictions", "Idle and prewarmed containers removed.", PoolCounter.EVICTIONS, "reason", Eviction),
            ("pool_leaks_reaped", "Containers that nothing held, removed.", PoolCounter.LEAKS, "of", Leak),
        ):
            yield _counters(name, text, label, {value.value: counters.of(what, value.value) for value in values})
        yield _counters(
            "pool_waits",
            "Requests that had to wait for a container.",
            "end",
            {end: counters.of(PoolCounter.WAITS, end) for end in (GRANTED, GIVEN_UP)},
        )
        yield _counter("pool_refills", "Prewarmed containers created.", counters.of(PoolCounter.REFILLS))
        failures = counters.of(PoolCounter.START_FAILURES)
        yield _counter("pool_start_failures", "Containers that could not be created.", failures)

    return read


def of_queues(depths: QueueDepths, stale_after_s: float) -> Part:
    """Report what waits in SQS, as of the last check, and what this worker has received. Stale depths are left out."""

    def read() -> Iterator[Metric]:
        now, ages = time.time(), depths.ages_s()
        fresh = {name: one for name, one in depths.observations.items() if now - one.at < stale_after_s}
        messages: dict[tuple[str, ...], float] = {}
        for name, one in fresh.items():
            for state in ("visible", "in_flight", "delayed", "dead_letters"):
                if (count := getattr(one.depth, state)) is not None:
                    messages[name, state] = count
        yield _gauges("queue_messages", "Messages by SQS' approximate counts.", ("queue", "state"), messages)
        yield _by(
            "queue_oldest_message_age_seconds",
            "Estimated age of the oldest message: time since the youngest message that this worker received was sent, or "
            "since it saw the queue empty; 0 if none waits. CloudWatch has SQS' own ApproximateAgeOfOldestMessage.",
            "queue",
            {name: ages[name] for name in fresh if name in ages},
        )
        read_now = dict(poll_statuses())
        for counted, text in (
            ("received", "Messages received."),
            ("refused", "Messages without a valid request, returned to the queue."),
            ("failures", "Polls that SQS did not answer, or answered with an error."),
        ):
            name = "queue_poll_failures" if counted == "failures" else f"queue_messages_{counted}"
            yield _counters(name, text, "queue", {queue: getattr(one, counted) for queue, one in read_now.items()})

    return read


def of_caches(usages: Mapping[str, CacheUsage]) -> Part:
    """Report code and layers on disk, as of the last check; all workers of the data folder share them."""

    def read() -> Iterator[Metric]:
        now = dict(usages)
        yield _by("cache_bytes", "Size on disk.", "cache", {name: usage.disk_bytes for name, usage in now.items()})
        yield _by(
            "cache_limit_bytes",
            "Limit of the size on disk.",
            "cache",
            {name: usage.limit_bytes for name, usage in now.items()},
        )
        yield _by("cache_entries", "Codes or layers.", "cache", {name: usage.entries for name, usage in now.items()})

    return read


def of_health(health: Health, disk: Disk) -> Part:
    """Report the last result of each check."""

    def read() -> Iterator[Metric]:
        healthy = {name: float(result.ok) for name, result in health.last_results().items()}
        yield _by("health", "1 if the last check succeeded, else 0; see /healthz.", "check", healthy)
        if disk.free_bytes is not None and disk.total_bytes is not None:
            yield _gauge("disk_free_bytes", "Free space on the disk of the data folder.", disk.free_bytes)
            yield _gauge("disk_size_bytes", "Size of the disk of the data folder.", disk.total_bytes)

    return read


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"nanogrid_{name}", text, value=float(value))


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    return _gauges(name, text, (label,), {(key,): value for key, value in values.items()})


def _gauges(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(f"nanogrid_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), float(value))
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"nanogrid_{name}", text, value=float(value))


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"nanogrid_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
