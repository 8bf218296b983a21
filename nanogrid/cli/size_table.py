"""Prints the measurements at each size, and the choice for each strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogrid.cli import console
from nanogrid.result import ExecutionResult, Outcome
from nanogrid.tuner.sizes import Measurement, Size, Strategy

if TYPE_CHECKING:
    from rich.table import Table

    from nanogrid.cli.size_runs import SizeRuns

Choices = Mapping[Strategy, Size]

MIB = 1024 * 1024
HEADINGS = ("memory", "CPUs", "time", "from", "to", "peak", "GB-s/1000", "CPU time", "runs", "not warm")

TAIL_LINES = 10
"""How many lines to show of the stderr of a function that fails."""

SCARCE = 0.9
"""A remark points out a chosen size if the largest peak took more than this share of it."""


def to_wire(name: str, measured: Sequence[Measurement], choices: Choices, chart: Path | None) -> dict[str, Any]:
    """Everything as a camelCase JSON object; GB-seconds are per run. A strategy without a choice is null."""
    return {
        "functionId": name,
        "sizes": [
            {
                **_size(one.size),
                "outcome": one.outcome.value,
                "runs": one.runs,
                "notWarm": one.not_warm,
                "timeMs": one.time_ms,
                "shortestMs": one.shortest_ms,
                "longestMs": one.longest_ms,
                "cpuMillis": one.cpu_ms,
                "peakMemoryBytes": one.peak_memory_bytes,
                "gbSeconds": one.gb_seconds,
            }
            for one in measured
        ],
        "choices": {strategy.value: _size(choices[strategy]) if strategy in choices else None for strategy in Strategy},
        "chart": None if chart is None else str(chart),
    }


def print_measured(size_runs: SizeRuns, choices: Choices, *, table: bool) -> None:
    """Print the table and the choices to stdout, and remarks about them, or why there is no choice, to stderr."""
    measured = size_runs.measured
    if table:
        out = console.stdout()
        out.print(_table(measured))
        if choices:
            out.print()
        for strategy, size in choices.items():
            out.print(f"for {strategy.value + ':':<10} {size}")
    for remark in remarks(measured, choices):
        console.note(remark)
    if not choices:
        _explain(list(size_runs.failures.values()))


def remarks(measured: Sequence[Measurement], choices: Choices) -> list[str]:
    """What the numbers alone do not show, one sentence each."""
    found = []
    runs, not_warm = sum(one.runs for one in measured), sum(one.not_warm for one in measured)
    if not_warm:
        timed = "their times do not count where others were warm" if not_warm < runs else "no run was warm"
        found.append(f"{not_warm} of {runs} runs did not start in a warm container; {timed}")
    for one in measured:
        peak = one.peak_memory_bytes
        if one.size in choices.values() and peak is not None and peak > SCARCE * one.size.memory_mb * MIB:
            found.append(
                f"{one.size} leaves {one.size.memory_mb - peak / MIB:.0f} MiB over the largest peak: "
                "a larger input may not fit"
            )
    return found


def words(outcome: Outcome) -> str:
    """`out of memory`."""
    return outcome.value.lower().replace("_", " ")


def human_ms(time_ms: float) -> str:
    """`2.7 ms`, `103 ms`, `12.3 s`: three digits are more than the measurement holds."""
    if time_ms >= 10_000:
        return f"{time_ms / 1000:.1f} s"
    return f"{time_ms:.1f} ms" if time_ms < 10 else f"{time_ms:.0f} ms"


def _size(size: Size) -> dict[str, Any]:
    return {"memoryMb": size.memory_mb, "cpus": size.cpus}


def _table(measured: Sequence[Measurement]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for one in measured:
        table.add_row(*_row(one), style="" if one.succeeded else "red")
    return table


def _row(one: Measurement) -> list[str]:
    """The row of one size. If a run failed, the outcome replaces the time: numbers of the other runs would mislead."""
    peak = "?" if one.peak_memory_bytes is None else f"{one.peak_memory_bytes / MIB:.0f} MiB"
    row = [f"{one.size.memory_mb} MiB", f"{one.size.cpus:g}"]
    if one.succeeded and one.time_ms is not None and one.gb_seconds is not None:
        times = [human_ms(time_ms) for time_ms in (one.time_ms, one.shortest_ms, one.longest_ms) if time_ms is not None]
        cpu = "?" if one.cpu_ms is None else human_ms(one.cpu_ms)
        row += [*times, peak, f"{one.gb_seconds * 1000:.3g}", cpu]
    else:
        row += [words(one.outcome), "", "", peak, "", ""]
    return [*row, str(one.runs), str(one.not_warm)]


def _explain(failures: Sequence[ExecutionResult]) -> None:
    """Print why there is no choice, with the end of the function's stderr at the largest size that failed by itself."""
    own = [result for result in failures if result.outcome in (Outcome.FAILED, Outcome.NOT_RUN)]
    shown = (own or failures)[-1]
    if tail := shown.stderr.strip().splitlines()[-TAIL_LINES:]:
        console.note("\n".join(tail))
    became = ", ".join(dict.fromkeys(words(result.outcome) for result in failures))
    remedy = {
        Outcome.OUT_OF_MEMORY: "give larger sizes with --memory",
        Outcome.TIMED_OUT: "give it more time with --timeout-ms",
    }.get(shown.outcome, "its stderr ends as above")
    console.complain(f"the function succeeded at no size ({became}): {remedy}")
