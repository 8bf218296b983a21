"""Which container runs what, as the owner reports it, and whether the engine still has it."""

from __future__ import annotations

from pathlib import Path

from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.labels import DATA_LABEL, data_id
from nanogrid.execution.pool.snapshot import snapshot
from nanogrid.settings import Settings


def containers_of(data_dir: Path, request_id: str) -> list[str]:
    """Ids of the containers that run a request right now."""
    return [one.container_id for one in snapshot(data_dir) if one.request_id == request_id and one.container_id]


def exists(engine: Engine, container_id: str, settings: Settings) -> bool:
    """Whether the engine has this container of the data folder, in any state."""
    found = engine.find({DATA_LABEL: data_id(settings.data_dir)})
    return container_id in [container.id for container in found]
