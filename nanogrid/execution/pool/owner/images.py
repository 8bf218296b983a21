"""The ids of images by name, as of the last look-up.

Runs in: threads of the worker's main process.

The rule: a warm start does not call the engine. A name is looked up once, and periodically by the upkeep of the pool.
"""

from __future__ import annotations

import logging

from nanogrid.execution.container.engine import Engine

log = logging.getLogger(__name__)


class Images:
    """Ids by name, and which images have no Python. Thread-safe: each value is set in one step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids: dict[str, str] = {}
        self._without_python: set[str] = set()

    def id_of(self, image: str) -> str:
        """The image's id. A missing image is pulled. Raises ImageUnavailableError."""
        known = self._ids.get(image)
        if known is None:
            known = self._ids[image] = self._engine.ensure_image(image)
        return known

    def refresh(self) -> list[str]:
        """Look all names up again. Returns the ids that no name stands for any more."""
        outdated = []
        for image, known in list(self._ids.items()):
            now = self._engine.image_id(image)
            if now is None:
                del self._ids[image]  # the next use pulls the image, or raises
            elif now != known:
                log.info("image %s was updated: containers of the old one are not used again", image)
                self._ids[image] = now
                outdated.append(known)
        return outdated

    def is_without_python(self, image_id: str) -> bool:
        """Whether containers of this image cannot be kept warm."""
        return image_id in self._without_python

    def note_without_python(self, image: str, image_id: str, reason: str) -> None:
        """Remember that the image has no usable Python, and log it once."""
        if image_id not in self._without_python:
            self._without_python.add(image_id)
            log.warning(
                "image %s cannot be kept warm, each run starts a container: it needs Python 3.9 or newer (%s)",
                image, reason,
            )  # fmt: skip
