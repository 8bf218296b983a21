"""The local stack's images, and the containers that a killed worker left behind.

The rule: an engine that does not answer is a warning here, and never keeps the stack from starting or stopping.
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
    """Return those `images` that the engine has. Empty, with a warning, if the engine does not answer."""
    engine = _engine()
    try:
        return {image for image in images if engine.has_image(image)}
    except NanoGridError as silent:
        log.warning("no function can run: %s; run `nanogrid doctor` for details", silent)
        return set()


def remove_remains(worker_data: Path) -> int:
    """Remove the containers and folders of this stack's dead workers. Return how many containers were removed."""
    if not (worker_data / "id").exists():  # no worker ever got far enough to own anything
        return 0
    try:
        return reap(worker_data, _engine())
    except NanoGridError as silent:
        log.warning("containers of the stopped worker may remain until the next worker removes them: %s", silent)
        return 0


def _engine() -> Engine:
    """The user's engine. No other setting matters here, so no other setting is read or checked."""
    url = os.environ.get("NANOGRID_DOCKER_URL") or Settings.model_fields["docker_url"].default
    return Engine(Settings.model_construct(docker_url=url))
