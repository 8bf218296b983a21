"""Draws a function's time (above) and GB-seconds (below) over the memory limit, with a line for each number of cores.

The rule: matplotlib is an optional extra, and imported only if a chart was requested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanogrid.cli.size_table import words
from nanogrid.errors import ConfigurationError
from nanogrid.tuner.sizes import Measurement, Size, Strategy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
FAILED_COLOUR = "firebrick"


def check_chart(path: Path) -> None:
    """Raise ConfigurationError if no chart can be written there: better before the measurement than after it."""
    if path.suffix not in FORMATS:
        raise ConfigurationError(f"--chart: {path} must end in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"--chart: the folder {path.parent} does not exist")
    try:
        import matplotlib  # noqa: F401  # only to check that it is installed
    except ImportError:
        raise ConfigurationError(
            "--chart needs matplotlib, which is not installed: pip install 'nanogrid[charts]', or leave --chart out"
        ) from None


def draw(measured: Sequence[Measurement], choices: Mapping[Strategy, Size], path: Path, *, title: str) -> None:
    """Write a PNG or SVG, depending on the path's ending. Axes start at zero, so that lengths show true ratios."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    memories = sorted({one.size.memory_mb for one in measured})
    with rc_context({"svg.fonttype": "none"}):  # keep text as text
        figure = Figure(figsize=(7.5, 6.5), layout="constrained")
        times, costs = figure.subplots(2, sharex=True)
        times.set_title(title, parse_math=False)
        times.set_ylabel("time, ms")
        costs.set_ylabel("GB-seconds per 1000 runs")
        for cpus in sorted({one.size.cpus for one in measured}):
            _draw_line(times, costs, [one for one in measured if one.size.cpus == cpus], memories, cpus)
        _mark_choices(times, measured, choices, memories)
        _mark_failures(times, measured, memories)
        for axes in (times, costs):
            axes.set_xlim(-0.5, len(memories) - 0.5)
            axes.set_ylim(bottom=0)
            axes.grid(visible=True, axis="y", alpha=0.3)
        costs.set_xticks(range(len(memories)), [f"{memory_mb} MiB" for memory_mb in memories])
        costs.set_xlabel("memory limit")
        if len({one.size.cpus for one in measured}) > 1:
            times.legend(fontsize=8)
        figure.savefig(path, dpi=120, metadata={"Title": title, "Description": description(measured, choices)})


def description(measured: Sequence[Measurement], choices: Mapping[Strategy, Size]) -> str:
    """The chart in words, for people who cannot see it. It is in the file's metadata."""
    sizes = [
        f"{one.size}: {one.time_ms:.1f} ms" if one.succeeded else f"{one.size}: {words(one.outcome)}"
        for one in measured
    ]
    return "; ".join([*sizes, *(f"{strategy.value}: {size}" for strategy, size in choices.items())])


def _draw_line(times: Axes, costs: Axes, line: Sequence[Measurement], memories: Sequence[int], cpus: float) -> None:
    """The sizes with one number of cores that succeeded: mean time with the range after trimming, and GB-seconds."""
    places, means, below, above, gb_seconds = [], [], [], [], []
    for one in line:
        if one.succeeded and one.time_ms is not None and one.gb_seconds is not None:
            places.append(memories.index(one.size.memory_mb))
            means.append(one.time_ms)
            below.append(one.time_ms - (one.shortest_ms or one.time_ms))
            above.append((one.longest_ms or one.time_ms) - one.time_ms)
            gb_seconds.append(one.gb_seconds * 1000)
    times.errorbar(places, means, [below, above], marker="o", capsize=3, label=f"{cpus:g} CPU")
    costs.plot(places, gb_seconds, marker="o")


def _mark_choices(
    times: Axes, measured: Sequence[Measurement], choices: Mapping[Strategy, Size], memories: Sequence[int]
) -> None:
    """Write the strategies that a size was chosen for next to its time."""
    for one in measured:
        chosen = [strategy.value for strategy, size in choices.items() if size == one.size]
        if chosen and one.time_ms is not None:
            at = (memories.index(one.size.memory_mb), one.time_ms)
            times.annotate(", ".join(chosen), at, (8, 0), textcoords="offset points", va="center", fontsize=8)


def _mark_failures(times: Axes, measured: Sequence[Measurement], memories: Sequence[int]) -> None:
    """Write the outcome of the other sizes at the bottom, instead of a point."""
    for place, memory_mb in enumerate(memories):
        failed = [one for one in measured if one.size.memory_mb == memory_mb and not one.succeeded]
        texts = dict.fromkeys(words(one.outcome) for one in failed)
        if failed:
            times.annotate(
                "\n".join(texts),
                (place, 0),
                (0, 4),
                textcoords="offset points",
                ha="center",
                color=FAILED_COLOUR,
                fontsize=8,
            )
