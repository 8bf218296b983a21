"""Checks that take too long for a scrape, in a thread of their own: the health of the parts, and the caches on disk."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping

from nanogrid.execution.code.cache import CacheUsage
from nanogrid.metrics.health import Health

log = logging.getLogger(__name__)

CACHES_EVERY_CHECKS = 4
"""Measuring a cache reads a small file for each of its entries, so not every round of checks includes the caches."""


class BackgroundChecks:
    """One thread. `usages` holds the last measured size of each cache."""

    def __init__(self, health: Health, caches: Mapping[str, Callable[[], CacheUsage]], every_s: float) -> None:
        self._health = health
        self._caches = caches
        self._every_s = every_s
        self.usages: dict[str, CacheUsage] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checks", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current check. Does not wait for a disk that hangs."""
        self._stopping.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        for number in itertools.count():
            self._health.report()
            if number % CACHES_EVERY_CHECKS == 0:
                self._measure_caches()
            if self._stopping.wait(self._every_s):
                return

    def _measure_caches(self) -> None:
        for name, usage in self._caches.items():
            try:
                self.usages[name] = usage()
            except Exception as error:  # noqa: BLE001  # the next attempt may work
                log.warning("the size of the cache of %s could not be read: %s", name, error)
