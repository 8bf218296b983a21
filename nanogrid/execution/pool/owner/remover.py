"""Removes one container: from the engine, from the disk and from the stock.

Runs in: threads of the worker's main process.
"""

from __future__ import annotations

import logging

from nanogrid.errors import NanoGridError
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.stock import Stock

log = logging.getLogger(__name__)


def remove(pooled: Pooled, engine: Engine, stock: Stock) -> None:
    """Remove a container that is not used any more, in any state. If the engine fails, the owner's sweep removes it later."""
    if pooled.link is not None:
        pooled.link.close()
    pooled.cgroup.thaw()  # a frozen process cannot be killed (cgroup v1)
    if pooled.id is not None:
        try:
            engine.remove(pooled.id)
        except NanoGridError as error:
            log.warning("container %s could not be removed: %s; the next sweep tries again", pooled.name, error)
    if pooled.slot is not None:
        pooled.slot.remove()
    stock.forget(pooled)
