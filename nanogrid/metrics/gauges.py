"""What is so right now, read when it is scraped.

The rule: memory only, and no part that fails takes the others' numbers with it.
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
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.owner.tally import GIVEN_UP, GRANTED, Counted, Eviction, Leak
from nanogrid.execution.pool.states import State
from nanogrid.metrics.health import Disk, Health
from nanogrid.metrics.queue_depths import QueueLook
from nanogrid.sqs.transport.readers import readings

log = logging.getLogger(__name__)

VERSION: str = sys.modules["nanogrid"].__version__
"""Taken from what is loaded: an import of the package itself would be one of all that it offers."""

MIB = 1024 * 1024
Part = Callable[[], Iterable[Metric]]


class Gauges(Collector):
    """Collects from its parts, one after the other."""

    def __init__(self, registry: CollectorRegistry, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._failures = 0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """All numbers of all parts that can be read."""
        for part in self._parts:
            try:
                yield from list(part())
            except Exception:
                self._failures += 1
                log.exception("a part of the metrics could not be read")
        yield _counter("collect_failures", "Parts of a scrape that could not be read.", self._failures)


def build_info() -> Iterator[Metric]:
    """Which NanoGrid this is."""
    yield _gauges(
        "build_info",
        "Always 1; the labels say which NanoGrid runs here.",
        ("version", "python"),
        {(VERSION, platform.python_version()): 1},
    )


def of_worker(ready: Callable[[], bool], concurrency: Callable[[], int], active: Callable[[], int]) -> Part:
    """Whether it takes work, and how much it has in hand."""

    def read() -> Iterator[Metric]:
        yield _gauge(
            "ready",
            "1 while the worker reads its queues and its children take requests, else 0: it starts, drains, stands still, or SQS fails.",
            ready(),
        )
        yield _gauge("worker_children", "Requests that the worker can run at once.", concurrency())
        yield _gauge("worker_requests_active", "Requests that children have in hand.", active())

    return read


def of_stalls(stalled: Callable[[], bool], mends: Callable[[], int]) -> Part:
    """Whether it stands still, and how often it had to be helped."""

    def read() -> Iterator[Metric]:
        yield _gauge("worker_stalled", "1 while requests are held, children are free, and none takes any.", stalled())
        yield _counter("worker_mends", "How often the worker mended its pool of children.", mends())

    return read


def of_pool(stock: Stock) -> Part:
    """The containers, and what happened to them."""

    def read() -> Iterator[Metric]:
        views = stock.views()
        held = [view.pooled for view in views]
        states = Counter(view.state for view in views)
        yield _by("pool_containers", "Containers by state.", "state", {s.value: states[s] for s in State})
        paused = sum(pooled.paused for pooled in held)
        yield _gauge("pool_containers_paused", "Idle and prewarmed containers that stand still.", paused)
        memory_mb = sum(pooled.seen.memory_mb for pooled in held if pooled.state is not State.ENDING)
        yield _gauge(
            "pool_memory_bytes",
            "Memory as the pool counts it: limits of containers in use, real use of the others.",
            memory_mb * MIB,
        )
        yield _gauge("pool_limit_memory_bytes", "Memory that the pool may have.", stock.bounds.memory_mb * MIB)
        yield _gauge("pool_limit_containers", "Containers that the pool may have.", stock.bounds.containers)
        yield _gauge("pool_waiters", "Requests that wait for a container now.", stock.waiting())
        starts = {kind.value: count for kind, count in stock.starts().items()}
        yield _counters("starts", "Containers given out, by kind of start.", "kind", starts)
        tally = stock.tally
        for name, text, what, label, values in (
            ("pool_evictions", "Containers that waited and were ended.", Counted.EVICTIONS, "reason", Eviction),
            ("pool_leaks_reaped", "Containers that nobody held, removed.", Counted.LEAKS, "of", Leak),
        ):
            yield _counters(name, text, label, {value.value: tally.of(what, value.value) for value in values})
        yield _counters(
            "pool_waits",
            "Requests that had to wait for a container.",
            "end",
            {end: tally.of(Counted.WAITS, end) for end in (GRANTED, GIVEN_UP)},
        )
        yield _counter("pool_refills", "Prewarmed containers made.", tally.of(Counted.REFILLS))
        failures = tally.of(Counted.START_FAILURES)
        yield _counter("pool_start_failures", "Containers that could not be made.", failures)

    return read


def of_queues(look: QueueLook, stale_after_s: float) -> Part:
    """What waits in SQS, as of the last look, and what this worker has received. Looks that are too old are not shown."""

    def read() -> Iterator[Metric]:
        now, ages = time.time(), look.ages_s()
        seen = {name: one for name, one in look.seen.items() if now - one.at < stale_after_s}
        depths: dict[tuple[str, ...], float] = {}
        for name, one in seen.items():
            for state in ("visible", "in_flight", "delayed", "dead_letters"):
                if (count := getattr(one.depth, state)) is not None:
                    depths[name, state] = count
        yield _gauges("queue_messages", "Messages by SQS' approximate counts.", ("queue", "state"), depths)
        yield _by(
            "queue_oldest_message_age_seconds",
            "Age of the oldest message as far as this worker can tell: time since the youngest message that it received was "
            "sent, or since the queue was seen empty; 0 when none waits. CloudWatch has SQS' own "
            "ApproximateAgeOfOldestMessage.",
            "queue",
            {name: ages[name] for name in seen if name in ages},
        )
        read_now = dict(readings())
        for counted, text in (
            ("received", "Messages received."),
            ("refused", "Messages that held no request, given back."),
            ("failures", "Polls that SQS did not answer, or with an error."),
        ):
            name = "queue_poll_failures" if counted == "failures" else f"queue_messages_{counted}"
            yield _counters(name, text, "queue", {queue: getattr(one, counted) for queue, one in read_now.items()})

    return read


def of_caches(usages: Mapping[str, CacheUsage]) -> Part:
    """Code and layers on disk, as of the last look; shared by all workers of the data folder."""

    def read() -> Iterator[Metric]:
        seen = dict(usages)
        yield _by("cache_bytes", "Size on disk.", "cache", {name: usage.disk_bytes for name, usage in seen.items()})
        yield _by("cache_limit_bytes", "Its limit.", "cache", {name: usage.limit_bytes for name, usage in seen.items()})
        yield _by("cache_entries", "Codes or layers.", "cache", {name: usage.entries for name, usage in seen.items()})

    return read


def of_health(health: Health, disk: Disk) -> Part:
    """What the checks found last."""

    def read() -> Iterator[Metric]:
        found = {name: float(one.ok) for name, one in health.known().items()}
        yield _by("health", "1 where the check found all well, else 0; see /healthz.", "check", found)
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
