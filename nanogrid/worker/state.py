"""What the main process of one worker holds in addition to Celery's own parts.

The rule: each bootstep puts its part here when it starts and removes it when it stops; others read it. A step finds the
state as `worker.nanogrid`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from nanogrid.execution.pool.owner.owner import Owner
from nanogrid.worker.stall import StallDetector


@dataclass
class WorkerState:
    """The parts of one worker. `None` before a step has started, and after it has stopped."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    """The metrics of this worker."""

    owner: Owner | None = None
    """The owner of this worker's containers."""

    stalls: StallDetector | None = None
    """Detects stalls, while the worker accepts requests."""

    mends: int = 0
    """How often the worker's pool of children was repaired."""
