"""`/status`: a worker's state and limits, as one JSON object for people and scripts.

The rule: like a scrape it reads memory only, and it names no function and no request.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from prometheus_client import CollectorRegistry

from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.states import State
from nanogrid.metrics.queue_depths import QueueDepths
from nanogrid.settings import Settings
from nanogrid.sqs.transport.poll_status import poll_statuses

LIMITS = (
    "max_timeout_ms",
    "max_memory_mb",
    "max_cpus",
    "max_attempts",
    "message_limit_bytes",
    "archive_limit_mb",
    "unpacked_limit_mb",
    "output_limit_bytes",
    "value_limit_bytes",
    "pids_limit",
    "nofile_limit",
    "workspace_mb",
    "tmp_mb",
    "code_cache_mb",
    "layer_cache_mb",
    "layer_limit_mb",
    "idle_timeout_s",
    "pool_wait_s",
    "result_expires_s",
)
"""Settings that limit what a request may ask for, or what a worker keeps."""


def queues(depths: QueueDepths) -> dict[str, Any]:
    """Return, for each queue, what SQS counted at the last check and how this worker reads it."""
    now, ages, read = time.time(), depths.ages_s(), dict(poll_statuses())
    entries: dict[str, Any] = {}
    for name in sorted({*depths.observations, *read}):
        entry: dict[str, Any] = {}
        if (observation := depths.observations.get(name)) is not None:
            entry |= {
                "visible": observation.depth.visible,
                "inFlight": observation.depth.in_flight,
                "delayed": observation.depth.delayed,
                "deadLetters": observation.depth.dead_letters,
                "oldestMessageAgeS": round(ages[name], 1) if name in ages else None,
                "lookedAgoS": round(now - observation.at, 1),
            }
        if (reading := read.get(name)) is not None:
            entry |= {
                "polledAgoS": round(now - reading.polled_at, 1),
                "pollsFail": reading.failing,
                "received": reading.received,
            }
        entries[name] = entry
    return entries


def pool(stock: Stock) -> dict[str, Any]:
    """The containers by state, how many requests wait for one, and the bounds in force."""
    views = stock.views()
    containers = [view.pooled for view in views]
    states = Counter(view.state for view in views)
    return {
        "containers": {state.value: states[state] for state in State},
        "paused": sum(pooled.paused for pooled in containers),
        "waiting": stock.waiting(),
        "memoryMb": sum(pooled.facts.memory_mb for pooled in containers if pooled.state is not State.ENDING),
        "mayHave": {"containers": stock.bounds.containers, "memoryMb": stock.bounds.memory_mb},
    }


def tuner(registry: CollectorRegistry, settings: Settings) -> dict[str, Any]:
    """Return the deployment's mode, and how often the tuner lowered or kept a limit since the worker's start."""
    decisions = {
        sample.labels["decision"]: int(sample.value)
        for metric in registry.collect()
        if metric.name == "nanogrid_tuner_decisions"
        for sample in metric.samples
    }
    return {"mode": settings.tuner_mode.value, "decisions": decisions}


def limits(settings: Settings) -> dict[str, Any]:
    """Return the limits in force, by the settings' names."""
    return {name: getattr(settings, name) for name in LIMITS}
