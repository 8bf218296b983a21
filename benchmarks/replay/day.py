"""What a day consists of: functions, each with its runs. Synthetic days and real traces have this same shape."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

DAY_S = 86400.0

MOST_RUNS = 2000
"""Runs of one function that are replayed. If it has more, only this many are kept, and each stands for several."""

ASKED_MB = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)
"""Memory sizes that users request."""

DEFAULT_MB = 512
"""The default memory of a request."""


class Run(NamedTuple):
    """One run: its start in seconds of the day, the memory that it needs, how long it takes, its code."""

    at_s: float
    peak_mb: float
    duration_ms: float
    code: str


@dataclass(frozen=True)
class Function:
    """A function with its day. `kind` describes how its peaks behave. Each of its runs stands for `weight` real ones."""

    name: str
    kind: str
    requested_mb: int
    weight: float
    runs: Sequence[Run]


def asked_mb(highest_mb: float, chance: random.Random) -> int:
    """The memory that the function's author requests: the default if it is enough, or much more than needed.

    Never less than the highest peak: without a tuner no run of the day is out of memory.
    """
    wanted = DEFAULT_MB if chance.random() < 0.5 else highest_mb * chance.uniform(1.2, 3.0)
    least = max(wanted, highest_mb * 1.02)
    return next((size for size in ASKED_MB if size >= least), int(least) + 1)
