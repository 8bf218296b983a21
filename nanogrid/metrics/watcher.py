"""Looks, in a thread of its own, at what takes too long for a scrape: the health of the parts, and the caches on disk."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping

from nanogrid.execution.code.cache import CacheUsage
from nanogrid.metrics.health import Health

log = logging.getLogger(__name__)

CACHES_EVERY_LOOKS = 4
"""A look at a cache reads a small file for each entry, so that not every look takes in the caches."""


class Watch:
    """One thread. `usages` holds what each cache held at the last look."""

    def __init__(self, health: Health, caches: Mapping[str, Callable[[], CacheUsage]], every_s: float) -> None:
        self._health = health
        self._caches = caches
        self._every_s = every_s
        self.usages: dict[str, CacheUsage] = {}
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
        for number in itertools.count():
            self._health.report()
            if number % CACHES_EVERY_LOOKS == 0:
                self._look_at_caches()
            if self._stopping.wait(self._every_s):
                return

    def _look_at_caches(self) -> None:
        for name, usage in self._caches.items():
            try:
                self.usages[name] = usage()
            except Exception as error:  # noqa: BLE001  # the next look may work
                log.warning("the size of the cache of %s could not be read: %s", name, error)
