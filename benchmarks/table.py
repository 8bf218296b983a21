"""The measurements as text: blocks for a terminal and a markdown table for the documents.

The rule: every number is shown with the same few digits everywhere, so that texts can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.figures import DASH, TIMES, Goal, Line, Measured, Samples

TABLE_HEAD = ("| what | measured | goal | |", "|---|---|---|---|")


def number(value: float) -> str:
    """Three significant digits without an exponent and without zeros at the end; all digits before the point."""
    if abs(value) < 0.0005:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def with_unit(value: float, unit: str) -> str:
    """A number and its unit; no blank before a times sign."""
    return f"{number(value)}{TIMES}" if unit == TIMES else f"{number(value)} {unit}".rstrip()


def goal_text(goal: Goal | None, unit: str) -> str:
    """A goal in words."""
    if goal is None:
        return DASH
    return f"{'≥' if goal.at_least else '≤'} {with_unit(goal.limit, unit)}"


def block(measured: Measured) -> str:
    """One row of the benchmark for a terminal: its variants, then its lines with verdicts."""
    lines = [f"{measured.row}: {measured.title}"]
    width = max((len(samples.name) for samples in measured.samples), default=0)
    lines += [_variant(samples, width) for samples in measured.samples]
    lines += [
        f"  {line.verdict:8} {line.what}: {with_unit(line.figure, line.unit)}"
        + ("" if line.goal is None else f"  (goal {goal_text(line.goal, line.unit)})")
        for line in measured.lines
    ]
    lines += [f"  note: {note}" for note in measured.notes]
    return "\n".join(lines)


def _variant(samples: Samples, width: int) -> str:
    median, p95 = with_unit(samples.median, samples.unit), with_unit(samples.p95, samples.unit)
    return f"    {samples.name:{width}}  n={len(samples.values):<5} median {median:>12}  p95 {p95:>12}"


def markdown(measured: Sequence[Measured]) -> str:
    """The table for docs/performance.md: one line per figure."""
    rows = [_markdown_line(row, line) for row in measured for line in row.lines]
    return "\n".join([*TABLE_HEAD, *rows]) + "\n"


def _markdown_line(row: Measured, line: Line) -> str:
    return (
        f"| {row.row}: {line.what} | {with_unit(line.figure, line.unit)} "
        f"| {goal_text(line.goal, line.unit)} | {line.verdict} |"
    )


def document(measured: Sequence[Measured], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything as one JSON object: the machine, and each row with its raw samples and its verdicts."""
    rows = []
    for row in measured:
        data = asdict(row)
        for line, written in zip(row.lines, data["lines"], strict=True):
            written["verdict"] = line.verdict
        for samples, written in zip(row.samples, data["samples"], strict=True):
            written.update(median=samples.median, p95=samples.p95)
        rows.append(data)
    return {"machine": machine, "rows": rows}
