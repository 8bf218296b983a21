"""What happened in a pool, counted where it happens, for whoever reads it.

The rule: counts only grow, and counting takes no longer than an addition. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import Counter
from enum import Enum


class Counted(str, Enum):
    """What is counted. The value is the count's name; a label follows where there are several kinds."""

    STARTS = "starts"
    """A container was given out; by StartKind."""
    START_FAILURES = "start_failures"
    """A container could not be made."""
    WAITS = "waits"
    """A request had to wait for a container; GRANTED or GIVEN_UP."""
    REFILLS = "refills"
    """A prewarmed container was made."""
    EVICTIONS = "evictions"
    """A container that waited was ended; by Eviction."""
    LEAKS = "leaks"
    """A container that nobody held was removed; by Leak."""


class Eviction(str, Enum):
    """Why a container that waited was ended."""

    ROOM = "room"
    """Another one needed its room."""
    IDLE = "idle"
    """Its function did not come back within the idle timeout."""
    OUTDATED = "outdated"
    """Its image's name stands for another image by now."""
    GONE = "gone"
    """It had ended by itself, or by somebody's hand."""


class Leak(str, Enum):
    """Whose container it was that nobody held."""

    DEAD_WORKER = "dead_worker"
    OWN = "own"
    """This worker's: the engine had failed when it was to go."""


GRANTED = "granted"
GIVEN_UP = "given_up"


class Tally:
    """The counts of one pool. All mutable state: `_counts`, guarded by `_lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Counted, str]] = Counter()

    def add(self, what: Counted, label: str = "", amount: int = 1) -> None:
        """Count."""
        with self._lock:
            self._counts[what, label] += amount

    def of(self, what: Counted, label: str = "") -> int:
        """How often it happened."""
        with self._lock:
            return self._counts[what, label]
