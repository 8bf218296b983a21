"""Days of the real trace: the CSV files of the Azure Functions dataset of 2019, if the user has them.

https://github.com/Azure/AzurePublicDataset tells where they are and what their columns mean. The trace has no single peaks: memory is given
per application, as percentiles of averages over a minute. Each run here draws its peak from its application's percentiles and
its duration from its function's, so what one function's peaks do from run to run is as far as the trace tells, and no further.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.replay.day import MOST_RUNS, Function, Run, asked_mb

INVOCATIONS = "invocations_per_function_md.anon.d{:02}.csv"
DURATIONS = "function_durations_percentiles.anon.d{:02}.csv"
MEMORY = "app_memory_percentiles.anon.d{:02}.csv"
DAYS = range(1, 15)
MINUTES = 1440

MEMORY_POINTS = tuple((share, f"AverageAllocatedMb_pct{share}") for share in (1, 5, 25, 50, 75, 95, 99, 100))
DURATION_POINTS = tuple((share, f"percentile_Average_{share}") for share in (0, 1, 25, 50, 75, 99, 100))

Curve = Sequence[tuple[float, float]]
"""(Percent, value), rising."""


class TraceError(Exception):
    """The files are missing, or have unexpected content."""


def read_day(folder: Path, number: int, seed: int, count: int) -> list[Function]:
    """This many functions of a day, drawn with this seed. The trace has no requested memory, so that is drawn, too."""
    memory = {_key(row, "HashApp"): _curve(row, MEMORY_POINTS) for row in _rows(folder / MEMORY.format(number))}
    durations = {
        _key(row, "HashFunction"): _curve(row, DURATION_POINTS) for row in _rows(folder / DURATIONS.format(number))
    }
    chance = random.Random(seed)  # noqa: S311
    drawn: list[dict[str, str]] = []
    seen = 0
    for row in _rows(folder / INVOCATIONS.format(number)):
        if _key(row, "HashApp") not in memory or _key(row, "HashFunction") not in durations:
            continue
        seen += 1
        if len(drawn) < count:
            drawn.append(row)
        elif (place := chance.randrange(seen)) < count:
            drawn[place] = row
    functions = [
        _function(row, memory[_key(row, "HashApp")], durations[_key(row, "HashFunction")], chance) for row in drawn
    ]
    found = [function for function in functions if function.runs]
    if not found:
        raise TraceError(
            f"no function of day {number} in {folder} has runs, durations and memory: are these files of one day?"
        )
    return found


def days_of(folder: Path) -> list[int]:
    """The days that have all three files. Raises TraceError if there are none."""
    names = (INVOCATIONS, DURATIONS, MEMORY)
    days = [number for number in DAYS if all((folder / name.format(number)).is_file() for name in names)]
    if not days:
        raise TraceError(
            f"{folder} has no day of the trace: wanted {', '.join(name.format(1) for name in names)}, or of another day"
        )
    return days


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def _key(row: dict[str, str], column: str) -> tuple[str, str, str]:
    """Names are unique within their owner and application only."""
    try:
        return row["HashOwner"], row["HashApp"], row[column]
    except KeyError as error:
        raise TraceError(
            f"a file of the trace has no column {error}: its columns are {', '.join(list(row)[:6])}, …"
        ) from error


def _curve(row: dict[str, str], points: Sequence[tuple[int, str]]) -> Curve:
    curve: list[tuple[float, float]] = []
    for share, column in points:
        try:
            value = max(0.0, float(row[column]))
        except (KeyError, ValueError) as error:
            raise TraceError(f"a row of the trace has no number in column {column}: {row.get(column)!r}") from error
        curve.append((share, max(value, curve[-1][1] if curve else 0.0)))
    return curve


def _drawn(curve: Curve, chance: random.Random) -> float:
    """A value of this distribution: linear between two points, and the first point below it."""
    share = chance.random() * 100
    before, low = curve[0]
    for after, high in curve[1:]:
        if share <= after:
            return low + (high - low) * max(0.0, share - before) / (after - before)
        before, low = after, high
    return low


def _function(row: dict[str, str], memory: Curve, durations: Curve, chance: random.Random) -> Function:
    counts = [int(row.get(str(minute)) or 0) for minute in range(1, MINUTES + 1)]
    weight = max(1.0, sum(counts) / MOST_RUNS)
    runs = []
    for minute, invocations in enumerate(counts):
        kept = int(invocations / weight + chance.random())
        for start in sorted(chance.random() for _ in range(kept)):
            peak_mb = max(1.0, _drawn(memory, chance))
            duration_ms = max(0.5, _drawn(durations, chance))
            runs.append(Run(round(60 * (minute + start), 3), round(peak_mb, 2), duration_ms, "v0"))
    name = f"{row['HashApp'][:8]}/{row['HashFunction'][:8]}"
    requested_mb = asked_mb(max((run.peak_mb for run in runs), default=1.0), chance)
    return Function(name, row.get("Trigger", ""), requested_mb, weight, runs)
