"""`nanogrid doctor`: finds what keeps a request from its result, and how to fix it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from nanogrid.cli import console
from nanogrid.cli.options import JsonOption

if TYPE_CHECKING:
    from nanogrid.cli.checks import Check

BROKEN = 1


def doctor(as_json: JsonOption = False) -> None:
    """Check Docker, images, the build network, S3, queues, Redis, workers and their health, disk, cgroups and clocks, and suggest how to fix problems.

    Exit code: 0 nothing is broken (warnings are fine); 1 something is.
    """
    from nanogrid.cli.checks import CheckHealth, run_checks
    from nanogrid.cli.target import find_target

    target = find_target(required=False)
    checks = run_checks(target.settings, is_local=target.is_local)
    if as_json:
        console.print_json([check.to_wire() for check in checks])
    else:
        _print(checks)
    if any(check.health is CheckHealth.BROKEN for check in checks):
        raise typer.Exit(BROKEN)


def _print(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "broken": ("✗", "red")}
    table = Table.grid(padding=(0, 2))
    for check in checks:
        mark, colour = marks[check.health.value]
        said = Text(check.found)
        if check.remedy:
            said.append(f"\n→ {check.remedy}", style=colour)
        table.add_row(Text(mark, style=colour), Text(check.name, style="bold"), said)
    console.stdout().print(table)
