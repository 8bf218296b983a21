"""The end of a container: removed from the engine, its folder deleted, forgotten by the stock."""

from __future__ import annotations

import logging

from nanogrid.errors import NanoGridError
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.stock import Stock

log = logging.getLogger(__name__)


def remove(pooled: Pooled, engine: Engine, stock: Stock) -> None:
    """Remove a container that nobody uses any more, in whatever state it is. What the engine fails at, a sweep does later."""
    if pooled.link is not None:
        pooled.link.close()
    pooled.cgroup.thaw()  # what is frozen cannot be killed (cgroup v1)
    if pooled.id is not None:
        try:
            engine.remove(pooled.id)
        except NanoGridError as error:
            log.warning("container %s: %s; it will be tried again", pooled.name, error)
    if pooled.slot is not None:
        pooled.slot.remove()
    stock.forget(pooled)
