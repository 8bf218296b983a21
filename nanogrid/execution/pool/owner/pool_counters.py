"""Counts what happens in a pool, where it happens, for the metrics.

The rule: counts only grow, and counting costs no more than an addition. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import Counter
from enum import Enum


class PoolCounter(str, Enum):
    """What is counted. The value is the counter's name; a label follows if there are several kinds."""

    STARTS = "starts"
    """A request got a container; by StartKind."""
    START_FAILURES = "start_failures"
    """A container could not be started."""
    WAITS = "waits"
    """A request had to wait for a container; GRANTED or GIVEN_UP."""
    REFILLS = "refills"
    """A prewarmed container was started."""
    EVICTIONS = "evictions"
    """A container that was not in use was evicted; by Eviction."""
    LEAKS = "leaks"
    """A leaked container was removed; by Leak."""


class Eviction(str, Enum):
    """Why a container that was not in use was evicted."""

    ROOM = "room"
    """Another container needed its room."""
    IDLE = "idle"
    """Its function did not run again within the idle timeout."""
    OUTDATED = "outdated"
    """Its image's name stands for another image now."""
    GONE = "gone"
    """It had ended by itself, or somebody had removed it."""


class Leak(str, Enum):
    """Which worker had leaked a container."""

    DEAD_WORKER = "dead_worker"
    OWN = "own"
    """This worker: the engine had failed to remove the container."""


GRANTED = "granted"
GIVEN_UP = "given_up"


class PoolCounters:
    """The counts of one pool. All mutable state: `_counts`, guarded by `_lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[PoolCounter, str]] = Counter()

    def add(self, counter: PoolCounter, label: str = "", amount: int = 1) -> None:
        """Count `amount` more."""
        with self._lock:
            self._counts[counter, label] += amount

    def of(self, counter: PoolCounter, label: str = "") -> int:
        """The count so far."""
        with self._lock:
            return self._counts[counter, label]
