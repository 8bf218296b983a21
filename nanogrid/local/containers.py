"""What the local stack asks of the Docker engine: which images it holds, and to remove what the worker left.

The one rule: an engine that does not answer is a warning here, never a reason not to go up or down.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from nanogrid.errors import NanoGridError
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.pool.owner.reaper import reap
from nanogrid.settings import Settings

log = logging.getLogger(__name__)


def present_images(images: Iterable[str]) -> set[str]:
    """Those of `images` that the engine holds. Empty, with a warning, when it does not answer."""
    engine = _engine()
    try:
        return {image for image in images if engine.has_image(image)}
    except NanoGridError as silent:
        log.warning("no function can run: %s; `nanogrid doctor` says more", silent)
        return set()


def remove_remains(worker_data: Path) -> int:
    """Remove the containers and folders of this stack's dead workers. How many containers went."""
    if not (worker_data / "id").exists():  # no worker ever came far enough to own anything
        return 0
    try:
        return reap(worker_data, _engine())
    except NanoGridError as silent:
        log.warning("containers of the ended worker may be left, the next worker removes them: %s", silent)
        return 0


def _engine() -> Engine:
    """The person's engine. Nothing else of their settings matters here, so nothing else of them is read or checked."""
    url = os.environ.get("NANOGRID_DOCKER_URL") or Settings.model_fields["docker_url"].default
    return Engine(Settings.model_construct(docker_url=url))
