"""Looks, in a thread of its own, at what takes too long for a scrape: the health of the parts, and the caches on disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from nanogrid.code.cache import Usage
from nanogrid.health import Health

log = logging.getLogger(__name__)

CACHES_EVERY_S = 60.0
"""A look at a cache reads a small file for each entry."""


class Watch:
    """One thread. `usages` holds what each cache held at the last look."""

    def __init__(self, health: Health, caches: Mapping[str, Callable[[], Usage]], every_s: float) -> None:
        self._health = health
        self._caches = caches
        self._every_s = every_s
        self.usages: dict[str, Usage] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the look that is under way; a disk that hangs is not waited for."""
        self._stopping.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        caches_at = 0.0
        while True:
            self._health.report()
            if time.monotonic() >= caches_at:
                caches_at = time.monotonic() + CACHES_EVERY_S
                self._look_at_caches()
            if self._stopping.wait(self._every_s):
                return

    def _look_at_caches(self) -> None:
        for name, usage in self._caches.items():
            try:
                self.usages[name] = usage()
            except Exception as error:  # noqa: BLE001  # the next look may work
                log.warning("the size of the cache of %s could not be read: %s", name, error)
