"""Thousands of functions, a few of them popular, through one worker: nothing slows down, and nothing grows."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import psutil

from benchmarks.census import MEMORY_UNIT, files_below, pss_mb
from benchmarks.figures import TIMES, Goal, Line, Measured, Samples
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.stack import Stack, stack
from benchmarks.turns import Progress
from nanogrid.execution.code import CodeStore

TITLE = (
    "2000 functions with Zipf's popularity, 10 000 requests through one worker: is the end slower than the beginning?"
)
FUNCTIONS, REQUESTS = 2000, 10_000
CACHE_MB, CONTAINERS = 8, 60
"""Too little for all functions, so that code and containers are evicted, too."""

IN_FLIGHT = 4
PARTS, WARM_UP_PARTS = 12, 2
SEED = 13


@dataclass(frozen=True)
class Part:
    """A twelfth of the requests: what one of them took, and what existed afterwards, when nothing ran."""

    wall_ms: float
    cpu_ms: float
    warm_percent: float
    memory_mb: float
    files: int


def measure(setting: Setting) -> Measured:
    """The last part asks for the same functions in the same order as the first one after the warm-up."""
    functions, requests = setting.rounds(FUNCTIONS), setting.rounds(REQUESTS)
    with stack(setting, code_cache_mb=1 if setting.quick else CACHE_MB, pool_containers=CONTAINERS) as here:
        known = [here.request(HELLO.variation(number), functionId=f"function-{number}") for number in range(functions)]
        parts = _run(here, known, requests // PARTS, Progress(setting.row, requests))
        cache = CodeStore(here.grid.settings).usage()
        strays = _strays(here)
    first, last = parts[WARM_UP_PARTS], parts[-1]
    samples = (
        Samples("time per request", "ms", tuple(part.wall_ms for part in parts)),
        Samples("CPU of the worker per request", "ms", tuple(part.cpu_ms for part in parts)),
        Samples("warm starts", "%", tuple(part.warm_percent for part in parts)),
        Samples("the worker's memory", MEMORY_UNIT, tuple(part.memory_mb for part in parts)),
        Samples("files in the data folder", "", tuple(float(part.files) for part in parts)),
    )
    lines = (
        Line("time per request, last part / first after the warm-up", last.wall_ms / first.wall_ms, TIMES, Goal(1.1)),
        Line("CPU of the worker per request, the same", last.cpu_ms / first.cpu_ms, TIMES),
        Line("the worker's memory (PSS), growth", last.memory_mb - first.memory_mb, MEMORY_UNIT, Goal(10)),
        Line("code cache, of its limit", cache.disk_bytes / cache.limit_bytes * 100, "%", Goal(100)),
        Line("files in the code cache that belong to no code in it", strays, "", Goal(0)),
        Line("files in the data folder", last.files, ""),
        Line("warm starts, last part", last.warm_percent, "%"),
    )
    return Measured(setting.row, TITLE, samples, lines, (f"{functions} functions, {requests} requests",))


def _run(here: Stack, known: list[dict[str, Any]], number: int, progress: Progress) -> list[Part]:
    """Measure each part. Popularity falls with the rank: the second function is asked for half as often as the first."""
    weights = list(accumulate(1 / rank for rank in range(1, len(known) + 1)))
    parts: list[Part] = []
    for part in range(PARTS):
        seed = SEED if part in (WARM_UP_PARTS, PARTS - 1) else SEED + 1 + part
        chosen = random.Random(seed).choices(known, cum_weights=weights, k=number)  # noqa: S311  # no secret
        parts.append(_measured(here, chosen))
        progress.at((part + 1) * number)
    return parts


def _measured(here: Stack, requests: list[dict[str, Any]]) -> Part:
    processes = _processes(here)
    cpu_s, began = _cpu_s(processes), time.monotonic()
    results = list(here.run_many(requests, HELLO.prints, IN_FLIGHT))
    took_s, number = time.monotonic() - began, len(results)
    used_s = _cpu_s(processes) - cpu_s
    warm = sum(result.start_kind is not None and result.start_kind.value == "warm" for result in results)
    return Part(
        took_s / number * 1000,
        used_s / number * 1000,
        warm / number * 100,
        sum(pss_mb(process.pid) for process in _processes(here)),
        files_below(here.grid.settings.data_dir),
    )


def _processes(here: Stack) -> list[psutil.Process]:
    main = psutil.Process(here.worker_pid)
    return [main, *main.children()]


def _cpu_s(processes: list[psutil.Process]) -> float:
    """CPU time of the worker so far, including children that have ended."""
    main, *children = processes
    times = main.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in children:
        if child.is_running():
            used = child.cpu_times()
            total += used.user + used.system
    return total


def _strays(here: Stack) -> int:
    """Files of the code cache besides its entries, a record for each of these, a lock and a note. When nothing runs, there are none."""
    folder = here.grid.settings.data_dir / "code"
    entries = len(list((folder / "entries").iterdir()))
    records = len(list((folder / "index").iterdir()))
    return max(0, records - entries) + files_below(folder / "workplaces") + files_below(folder / "locks") - 1
