"""Counts what must not grow over a long run: memory and descriptors of processes, files in a folder, keys in Redis.

The rule: everything is counted from outside, at moments when nothing runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.figures import WARM_UP_SHARE, Line, Samples, steady

MEMORY_UNIT = "MB"
MEMORY_TOLERANCE = 1.0
"""Megabytes that a process or container may grow: allocators and page caches vary."""

DESCRIPTORS_TOLERANCE = 2.0
"""Connections open and close during the count. A leak over thousands of runs is an order of magnitude larger."""

COUNT_TOLERANCE = 0.0
"""Files, keys and processes do not grow at all."""


class Census:
    """Figures over time, each under a name. `warm_up` is the share of the samples that growth leaves out."""

    def __init__(self, warm_up: float = WARM_UP_SHARE) -> None:
        self._warm_up = warm_up
        self._values: dict[tuple[str, str], list[float]] = {}

    def note(self, name: str, value: float, unit: str = "") -> None:
        """Add a value of a figure."""
        self._values.setdefault((name, unit), []).append(value)

    def note_process(self, name: str, pids: Sequence[int]) -> None:
        """Add the total memory and descriptors of these processes."""
        processes = [psutil.Process(pid) for pid in pids]
        memory_bytes = sum(process.memory_info().rss for process in processes)
        self.note(f"{name}: memory", memory_bytes / 1e6, MEMORY_UNIT)
        self.note(f"{name}: descriptors", sum(process.num_fds() for process in processes))

    def samples(self) -> tuple[Samples, ...]:
        """Every figure over time."""
        return tuple(Samples(name, unit, tuple(values)) for (name, unit), values in self._values.items())

    def lines(self) -> tuple[Line, ...]:
        """The growth of every figure, compared with the noise."""
        return tuple(
            steady(samples.name, samples.values, samples.unit, tolerance=_tolerance(samples), warm_up=self._warm_up)
            for samples in self.samples()
        )


def _tolerance(samples: Samples) -> float:
    if samples.unit == MEMORY_UNIT:
        return MEMORY_TOLERANCE
    return DESCRIPTORS_TOLERANCE if samples.name.endswith("descriptors") else COUNT_TOLERANCE


def files_below(folder: Path) -> int:
    """The number of files and folders below a folder. Those removed during the count do not count."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def pss_mb(pid: int) -> float:
    """Memory of a process in megabytes, in which a page counts as a share for each process that maps it."""
    return float(psutil.Process(pid).memory_full_info().pss) / 1e6
