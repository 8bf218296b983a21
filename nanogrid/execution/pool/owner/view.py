"""How a container is shown to people: in its real state, also while a child retains it.

Runs in: threads of the worker's main process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.states import State


@dataclass(frozen=True)
class View:
    """One container at one moment. A retained container at rest has the state that it would have in the stock."""

    pooled: Pooled
    state: State
    since: float
    request_id: str | None
    runs: int


def view(pooled: Pooled) -> View:
    """The container now. Called under the stock's lock, because the container may be taken back at any time."""
    retention = pooled.retention
    if retention is None or pooled.state is not State.LEASED:
        return View(pooled, pooled.state, pooled.since, pooled.request_id, pooled.runs)
    runs = pooled.runs + retention.page.runs
    since = retention.resting_since()
    if since is None:
        return View(pooled, State.LEASED, retention.page.since or pooled.since, retention.page.request_id, runs)
    clean = pooled.link is not None and pooled.link.has_word()
    return View(pooled, State.IDLE if clean else State.CLEANING, since, None, runs)


def describe(view: View) -> dict[str, Any]:
    """One container as JSON, without its worker."""
    pooled = view.pooled
    rests = view.state in (State.IDLE, State.PREWARMED)
    return {
        "number": pooled.number,
        "name": pooled.name,
        "container_id": pooled.id or "",
        "image": pooled.image,
        "state": "paused" if rests and pooled.paused else view.state.value,
        "function_id": pooled.function_id,
        "request_id": view.request_id,
        "age_s": round(time.time() - pooled.made_at, 3),
        "in_state_s": round(time.monotonic() - view.since, 3),
        "runs": view.runs,
        "memory_limit_mb": pooled.limits.memory_mb,
        "memory_bytes": pooled.cgroup.memory_bytes(),
    }
