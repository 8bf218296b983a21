"""Claims on builds, shared by all threads and processes of a host, and the locks that show that a builder lives.

The rule: one builder per layer at a time, and a build container belongs to an owner whose lock the builder holds. When the
builder dies, the kernel drops both locks; the next builder or reaper then removes the container.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanogrid.execution.code.locks import Lock, try_exclusive, wait_for_file
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.labels import BUILD_LABEL, DATA_LABEL, OWNER_LABEL, data_id, owner_lock, owners_folder

log = logging.getLogger(__name__)

BUILDERS = "builds"
"""The folder of builders' locks: below the workers' locks, so that nothing mistakes a builder for a worker."""
CHECK_EVERY_S = 0.05
LOG_EVERY_S = 10.0


@contextmanager
def only_builder(folder: Path, layer_id: str, log_path: Path) -> Iterator[None]:
    """Be the only builder of this layer. Waits for another builder as long as it takes, and logs the wait."""
    # One by one: mkdir creates missing parents with default permissions.
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / layer_id
    lock = _locked(path, log_path)
    try:
        yield
    finally:
        # A builder that waits on the removed file gets its lock, notices that the name is gone, and tries again.
        path.unlink(missing_ok=True)
        lock.release()


def _locked(path: Path, log_path: Path) -> Lock:
    started = log_at = time.monotonic()
    while True:
        path.touch(mode=0o600)
        if lock := try_exclusive(path):
            return lock
        if time.monotonic() >= log_at:
            waited_s = time.monotonic() - started
            log.info(
                "layer %s: another builder is at work, waiting for %.0f s, see %s", path.name[:12], waited_s, log_path
            )
            log_at = time.monotonic() + LOG_EVERY_S
        time.sleep(CHECK_EVERY_S)


@contextmanager
def owner_of_build(data_dir: Path, layer_id: str) -> Iterator[dict[str, str]]:
    """Own one build container for the length of the block. Yields the container's labels."""
    owner_id = f"{BUILDERS}/{uuid.uuid4().hex[:16]}"
    labels = {DATA_LABEL: data_id(data_dir), OWNER_LABEL: owner_id, BUILD_LABEL: layer_id}
    path = owner_lock(data_dir, owner_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Locked under another name first, so that no reaper ever sees it unlocked.
    with wait_for_file(path.with_suffix(".new")) as lock:
        lock.path.rename(path)
        lock.path = path
        try:
            yield labels
        finally:
            path.unlink(missing_ok=True)


def forget_dead(folder: Path, data_dir: Path) -> None:
    """Remove the lock files that killed builders left: those of layers in `folder`, and their own."""
    builders = owners_folder(data_dir) / BUILDERS
    for path in (*folder.iterdir(), *(builders.iterdir() if builders.exists() else ())):
        if lock := try_exclusive(path):
            with lock:
                path.unlink(missing_ok=True)


def remove_orphans(data_dir: Path, engine: Engine, layer_id: str) -> None:
    """Remove containers of dead builders. Only the builder of `layer_id` calls this: any other builder of it is dead."""
    for container in engine.find({DATA_LABEL: data_id(data_dir)}):
        building = container.labels.get(BUILD_LABEL)
        if building is None:
            continue
        path = owner_lock(data_dir, container.labels.get(OWNER_LABEL, ""))
        lock = try_exclusive(path)
        if lock is None and path.exists() and building != layer_id:
            continue
        log.info("layer %s: removing container %s of a builder that is gone", building[:12], container.name)
        engine.remove(container.id)
        if lock is not None:
            path.unlink(missing_ok=True)
            lock.release()
