"""Measures variants in turn: A B C, B C A, C A B, ... so that disturbances of the machine affect all of them equally.

The rule: no run pays for another. A variant that follows a costly one in one round does not follow it in the next, and
between two runs the machine rests for a moment, so that what a run leaves to do (a runner that makes its next process
ready, a kernel that frees memory) is over. What runs cost that follow each other at once is what a throughput is for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

from benchmarks.figures import Samples

Variant = Callable[[], float | None]
"""One measured run. It returns its own milliseconds, or None to count the whole call."""

REST_S = 0.01
PROGRESS_EVERY_S = 5.0


class Progress:
    """Prints the progress of a long row to stderr every few seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._due = time.monotonic() + PROGRESS_EVERY_S

    def at(self, done: int) -> None:
        """Print the progress if it is due."""
        if time.monotonic() >= self._due:
            say(f"{self._what}: {done} of {self._total}")
            self._due = time.monotonic() + PROGRESS_EVERY_S


def say(text: str) -> None:
    """A line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)


def in_turn(
    what: str,
    variants: Mapping[str, Variant],
    *,
    rounds: int,
    warm_up: int = 3,
    rest: Callable[[], None] = lambda: None,
) -> dict[str, Samples]:
    """Milliseconds of every variant, `rounds` times each, after `warm_up` rounds that do not count.

    `rest` returns when what the run before has left to do is over; it is called before every run.
    """
    names = list(variants)
    values: dict[str, list[float]] = {name: [] for name in names}
    progress = Progress(what, rounds)
    for done in range(-warm_up, rounds):
        shift = done % len(names)
        for name in names[shift:] + names[:shift]:
            rest()
            time.sleep(REST_S)
            took_ms = timed(variants[name])
            if done >= 0:
                values[name].append(took_ms)
        progress.at(max(0, done))
    return {name: Samples(name, "ms", tuple(values[name])) for name in names}


def timed(variant: Variant) -> float:
    """Milliseconds of one run."""
    begin = time.perf_counter()
    own_ms = variant()
    return (time.perf_counter() - begin) * 1000 if own_ms is None else own_ms
