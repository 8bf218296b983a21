"""One picture of a whole benchmark: a strip and a box for every variant, and a curve for every figure over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
LOOP_UNITS = frozenset({"ms", "runs/s"})
"""Units of samples that were repeated; all others are figures over time."""


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Write a PNG. Axes start at zero, so that lengths show true ratios."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in measured if row.samples]
    if not rows:
        return
    height = -(-len(rows) // COLUMNS)
    figure, grid = pyplot.subplots(height, COLUMNS, figsize=(14, 3.2 * height), squeeze=False)
    axes = list(grid.flat)
    for place, row in zip(axes, rows, strict=False):
        place.set_title(f"{row.row}: {row.title}", fontsize=9, wrap=True)
        if row.samples[0].unit in LOOP_UNITS:
            _strips(place, row)
        else:
            _curves(place, row)
    for place in axes[len(rows) :]:
        place.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _strips(place: Axes, row: Measured) -> None:
    """A box and all points of every variant, the first one on top."""
    for number, samples in enumerate(reversed(row.samples)):
        # Spread by a fixed pattern, so that the same samples give the same picture.
        heights = [number + 0.28 * ((index * 7919) % 101 / 50 - 1) for index in range(len(samples.values))]
        place.plot(samples.values, heights, ".", markersize=3, alpha=0.4)
        place.boxplot(list(samples.values), positions=[number], orientation="horizontal", widths=0.65, showfliers=False)
    place.set_yticks(range(len(row.samples)), [samples.name for samples in reversed(row.samples)], fontsize=8)
    place.set_xlabel(row.samples[0].unit, fontsize=8)
    place.set_xlim(left=0)
    place.grid(visible=True, axis="x", alpha=0.3)


def _curves(place: Axes, row: Measured) -> None:
    """Every figure relative to its largest value, so that growth is visible in any unit."""
    for samples in row.samples:
        largest = max(map(abs, samples.values)) or 1.0
        place.plot([value / largest for value in samples.values], label=f"{samples.name} ({largest:g} {samples.unit})")
    place.set_ylim(0, 1.05)
    place.set_xlabel("samples over time", fontsize=8)
    place.legend(fontsize=6, loc="lower right")
