"""What a run costs beside other ways to run the same program; every number is read from docs/performance.md."""

from __future__ import annotations

import re
from pathlib import Path

from svg import Picture

TABLE = Path(__file__).resolve().parents[1] / "performance.md"
TIMES = (
    ("NanoGrid, warm", "hello: median of bare", True),
    ("NanoGrid, prewarmed: new code", "unseen: median of bare", True),
    ("python3 main.py on the host", "", False),
    ("docker exec", "docker: docker exec, of bare", False),
    ("docker run", "docker: docker run, of bare", False),
)
RATES = (
    ("NanoGrid, warm", "throughput: of bare subprocess", True),
    ("python3 main.py, two at a time", "", False),
)
LEFT, FULL, ROW = 280, 580, 34


def measured(what: str) -> float:
    """The ratio that a row of the table of results names; 1 for the baseline itself."""
    if not what:
        return 1.0
    row = re.search(rf"^\| {re.escape(what)} \| ([\d.]+)\u00d7 \|", TABLE.read_text(), re.MULTILINE)
    if row is None:
        raise SystemExit(f"{TABLE.name} has no row {what!r}: the picture cannot be drawn")
    return float(row[1])


def picture() -> Picture:
    """Two charts with axes that begin at zero: time of a run, and runs a second."""
    cost = Picture(
        960,
        352,
        "A warm run takes a sixth of the time of starting python3; docker run takes twenty times as long as that",
    )
    below = bars(
        cost, 30, "Time of hello world, as a multiple of python3 main.py on the host (median; shorter is better)", TIMES
    )
    bars(cost, below + 24, "Runs a second, as a multiple of the same (longer is better)", RATES)
    return cost


def bars(cost: Picture, top: float, title: str, rows: tuple[tuple[str, str, bool], ...]) -> float:
    """One chart; returns where it ends."""
    cost.text(24, top + 4, title, kind="title")
    values = [measured(what) for _, what, _ in rows]
    scale = FULL / max(values)
    for number, ((name, _, ours), value) in enumerate(zip(rows, values, strict=True)):
        y = top + 22 + number * ROW
        cost.text(LEFT - 12, y + 17, name, anchor="end")
        cost.bar(LEFT, y, value * scale, 24, kind="bar-accent" if ours else "bar")
        cost.text(LEFT + value * scale + 8, y + 17, f"{value:g}\u00d7", kind="mono")
    bottom = top + 22 + len(rows) * ROW
    cost.line(LEFT, top + 16, LEFT, bottom)
    return bottom
