"""Several days at a time, each in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from benchmarks.replay.outcome import Outcome, outcome
from benchmarks.replay.synthetic import day
from benchmarks.replay.trace import read_day
from nanogrid.tuner.rules import Rules


class ReplayDay(NamedTuple):
    """One day to replay: a synthetic one, or one of the trace in a folder."""

    number: int
    seed: int
    functions: int
    folder: Path | None

    @property
    def name(self) -> str:
        """The name of the day in the table."""
        return f"seed {self.seed}" if self.folder is None else f"day {self.number}"


def replay(days: Sequence[ReplayDay]) -> list[Outcome]:
    """These days under every policy, one per core at a time."""
    if len(days) == 1:
        return [_replayed(days[0])]
    with get_context("spawn").Pool(min(len(days), os.cpu_count() or 1)) as processes:
        return processes.map(_replayed, days, chunksize=1)


def _replayed(one: ReplayDay) -> Outcome:
    if one.folder is None:
        functions = day(one.seed, one.functions)
    else:
        functions = read_day(one.folder, one.number, one.seed, one.functions)
    return outcome(functions, Rules())
