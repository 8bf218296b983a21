"""Removes what dead owners have left on this host: containers, slots, lock files. Never anything of a living owner.

Runs in: a thread of the worker's main process.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from nanogrid.execution.container import labels
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.pool import identity

log = logging.getLogger(__name__)


def reap(data_dir: Path, engine: Engine, *, keep: str | None = None) -> int:
    """Remove what every dead owner of this data folder has left, and return how many containers were removed.

    `keep` is the caller's own id. Containers are removed before the lock file, so that the next reaper continues if this one is
    killed half-way.
    """
    found = engine.find({labels.DATA_LABEL: labels.data_id(data_dir)})
    by_owner: dict[str, list[str]] = {owner: [] for owner in identity.known_owners(data_dir)}
    for container in found:
        owner = container.labels.get(labels.OWNER_LABEL, "")
        if {"", ".", ".."} & set(owner.split("/")):  # a builder's label is `builds/…`
            log.warning(
                "container %s is not removed: its label %s=%r names no worker",
                container.name,
                labels.OWNER_LABEL,
                owner,
            )
            continue
        by_owner.setdefault(owner, []).append(container.id)
    reaped = 0
    for owner, containers in by_owner.items():
        if owner == keep or not identity.is_dead(data_dir, owner):
            continue
        for container_id in containers:
            engine.remove(container_id)
            reaped += 1
        shutil.rmtree(identity.runs_of(data_dir, owner), ignore_errors=True)
        identity.forget(data_dir, owner)
        log.info("worker %s is dead: removed its %d containers and its folders", owner, len(containers))
    return reaped
