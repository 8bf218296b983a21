"""Thousands of requests through a whole worker: nothing grows in it, on disk or in Redis."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import psutil

from benchmarks.census import Census, files_below
from benchmarks.figures import Goal, Line, Measured
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.stack import Stack, stack
from benchmarks.turns import Progress

TITLE = "8000 requests through a whole worker: growth from after the warm-up to the end"
REQUESTS = 8000
IN_FLIGHT = 16
BATCHES = 40
WARM_UP = 0.25
"""By then both children were replaced once, as Celery does after a thousand tasks, by ones that were forked from a main process that
is in full swing. What remains is three lives of both children, and so each third is one life: the same ages are compared."""

OVERHEAD_S, TIMEOUT_MS = 8.0, 2000
"""Celery keeps a timer for the soft limit of every task until that would have passed, half a kilobyte, also when the task is over.
With a limit of 10 s in place of the usual 130 the number of these timers is soon the same at all times."""


def measure(setting: Setting) -> Measured:
    """Requests are sent in batches. Between batches, when nothing is in flight, everything is counted."""
    requests, census, starts = setting.rounds(REQUESTS), Census(WARM_UP), Counter[str]()
    progress = Progress(setting.row, requests)
    with stack(setting, overhead_s=OVERHEAD_S) as here:
        request = here.request(HELLO, timeoutMs=TIMEOUT_MS)
        other_keys = here.other_keys()
        here.run(request, HELLO.prints)
        for batch in range(BATCHES):
            starts += _batch(here, request, requests // BATCHES)
            _look(census, here)
            progress.at((batch + 1) * (requests // BATCHES))
        left = _keys_left(here, other_keys)
    warm = starts["warm"] / sum(starts.values()) * 100
    lines = (
        *census.lines(),
        Line("keys in Redis that are no results, more than before", left, "", Goal(0)),
        Line("warm starts", warm, "%"),
    )
    return Measured(setting.row, TITLE, census.samples(), lines, (f"{requests} requests, {IN_FLIGHT} in flight",))


def _batch(here: Stack, request: dict[str, Any], number: int) -> Counter[str]:
    """Send this many requests, a few at a time. Return how they started."""
    results = here.run_many([request] * number, HELLO.prints, IN_FLIGHT)
    return Counter("" if result.start_kind is None else result.start_kind.value for result in results)


def _look(census: Census, here: Stack) -> None:
    children = [child.pid for child in psutil.Process(here.worker_pid).children()]
    census.note_process("worker, main process", [here.worker_pid])
    census.note_process("worker, children together", children)
    census.note("worker, processes", len(children) + 1)
    census.note("files in the data folder", files_below(here.grid.settings.data_dir))
    census.note("keys in Redis that never expire", here.lasting_keys())


def _keys_left(here: Stack, before: int) -> int:
    """How many keys remain once the claims of the last runs have expired."""
    deadline = time.monotonic() + 2 * here.grid.settings.claim_ttl_s
    while (left := here.other_keys() - before) > 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    return left
