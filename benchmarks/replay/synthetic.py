"""A seeded day in the shape of the Azure Functions trace.

From "Serverless in the Wild" (USENIX ATC 2020): rates over eight orders of magnitude, 45 % of the functions at most hourly
and 81 % at most once a minute; mean durations log-normal with a median of 0.7 s; highest memory at most 170 MB for half of
them and 400 MB for 90 %. The paper says nothing of how one function's peaks vary from run to run: KINDS does.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

from benchmarks.replay.day import DAY_S, MOST_RUNS, Function, Run, asked_mb

RATES = ((0.0, 0.1), (0.45, 24.0), (0.81, 1440.0), (0.95, 3e4), (0.99, 5e5), (1.0, 1e7))
"""(Share of the functions, runs a day that these have at most); logarithms are interpolated."""

MEDIAN_S, SPREAD_S, LONGEST_S = 0.68, 2.36, 300.0
"""Mean durations of functions: log-normal, cut at the longest."""

MEDIAN_MB, P90_MB, LEAST_MB, MOST_MB = 170.0, 400.0, 12.0, 4096.0
"""The highest peaks of functions, spikes aside."""

KINDS = {"stable": 0.40, "noisy": 0.25, "bimodal": 0.15, "growing": 0.10, "spiky": 0.10}
"""Shares of the functions by how their peaks behave.

stable: 1 to 3 % of noise. noisy: 5 to 12 %. bimodal: two sizes of input, the larger one needs 1.5 to 3 times as much and is 2 to
40 % of the runs. growing: by 10 to 60 % over the day. spiky: one run in 200 to 5000 needs 1.5 to 3 times as much.
"""

DEPLOYED = 0.15
"""Share of the functions that get new code during the day, at one time or two; it then needs a tenth more or less."""

PERIODIC = 0.3
"""Share of the functions that a timer starts; the others start at random, half of them less at night."""

Peak = Callable[[float, random.Random], tuple[float, float]]
"""Time of day (0 to 1) → what a run needs and takes, relative to the function's."""


def day(seed: int, count: int) -> list[Function]:
    """This many functions with all their runs. The same seed gives the same day."""
    chance = random.Random(seed)  # noqa: S311
    # Strata instead of free draws: every day has its share of frequent functions, and of each kind.
    places = [(number + chance.random()) / count for number in range(count)]
    kinds = [kind for kind, share in KINDS.items() for _ in range(math.ceil(share * count))]
    chance.shuffle(kinds)
    return [
        function
        for number, (place, kind) in enumerate(zip(places, kinds, strict=False))
        if (function := _function(f"f{number}", kind, rate(place), chance)).runs
    ]


def rate(place: float) -> float:
    """The number of runs a day that this share of all functions does not exceed."""
    for (low, fewer), (high, more) in itertools.pairwise(RATES):
        if place <= high:
            return fewer * math.pow(more / fewer, (place - low) / (high - low))
    return RATES[-1][1]


def _function(name: str, kind: str, runs_a_day: float, chance: random.Random) -> Function:
    weight = max(1.0, runs_a_day / MOST_RUNS)
    starts = _starts(runs_a_day / weight, chance)
    mean_s = min(LONGEST_S, chance.lognormvariate(math.log(MEDIAN_S), SPREAD_S))
    highest_mb = chance.lognormvariate(math.log(MEDIAN_MB), math.log(P90_MB / MEDIAN_MB) / 1.2816)
    peak, largest = _peak(kind, chance)
    typical_mb = min(MOST_MB, max(LEAST_MB, highest_mb)) / largest
    deployed = sorted(chance.random() for _ in range(chance.choice((1, 2)))) if chance.random() < DEPLOYED else []
    changes = [1.0, *(chance.lognormvariate(0.0, 0.1) for _ in deployed)]
    runs = []
    for start in starts:
        version = sum(start >= change for change in deployed)
        needs, takes = peak(start, chance)
        duration_ms = mean_s * 1000 * takes * chance.lognormvariate(-0.045, 0.3)
        peak_mb = max(6.0, typical_mb * changes[version] * needs)
        runs.append(Run(start * DAY_S, round(peak_mb, 2), round(max(0.5, duration_ms), 3), f"v{version}"))
    requested_mb = asked_mb(max((run.peak_mb for run in runs), default=1.0), chance)
    return Function(name, kind, requested_mb, weight, runs)


def _starts(runs_a_day: float, chance: random.Random) -> list[float]:
    """Start times of a day's runs, as shares of the day."""
    if chance.random() < PERIODIC:
        begin, distance = chance.random(), 1 / runs_a_day
        return [start for number in range(math.ceil(runs_a_day)) if (start := (begin + number) * distance) < 1]
    starts, at = [], 0.0
    night = chance.choice((0.0, 0.6))
    while (at := at + chance.expovariate(runs_a_day * (1 + night))) < 1:
        if chance.random() * (1 + night) < 1 + night * math.sin(2 * math.pi * at):
            starts.append(at)
    return starts


def _peak(kind: str, chance: random.Random) -> tuple[Peak, float]:
    """How the peaks of such a function behave, and the highest of a usual day, both relative to its typical peak."""
    noise = chance.uniform(0.05, 0.12) if kind == "noisy" else chance.uniform(0.01, 0.03)
    usual = math.exp(2.5 * noise)

    def alone(_: float, draw: random.Random) -> tuple[float, float]:
        return draw.lognormvariate(0, noise), 1.0

    if kind == "bimodal":
        times, share = chance.uniform(1.5, 3.0), chance.uniform(0.02, 0.4)
        longer = times ** chance.uniform(0.0, 1.5)

        def sizes(_: float, draw: random.Random) -> tuple[float, float]:
            large = draw.random() < share
            return draw.lognormvariate(0, noise) * (times if large else 1.0), longer if large else 1.0

        return sizes, usual * times
    if kind == "growing":
        growth = chance.uniform(0.1, 0.6)
        return lambda at, draw: (draw.lognormvariate(0, noise) * (1 + growth * at), 1.0), usual * (1 + growth)
    if kind == "spiky":
        times, one_in = chance.uniform(1.5, 3.0), math.exp(chance.uniform(math.log(200), math.log(5000)))
        return lambda _, draw: (
            draw.lognormvariate(0, noise) * (times if draw.random() * one_in < 1 else 1.0),
            1.0,
        ), usual
    return alone, usual
