"""`nanogrid pool`: every container that the workers of a data folder have now.

The rule: it asks the workers over their sockets in the data folder. It does not ask the engine, and it changes nothing.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogrid.cli import console

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from nanogrid.execution.pool.snapshot import ContainerSnapshot

NOTHING_RUNS = 3
"""Exit code without a worker, as in `status`."""

REFRESH_S = 1.0
MIB = 1024 * 1024

COLORS = {
    "starting": "yellow",
    "prewarmed": "cyan",
    "leased": "bold green",
    "cleaning": "yellow",
    "idle": "green",
    "pausing": "yellow",
    "paused": "dim",
    "ending": "red",
}
"""Every state, in the order of the summary."""

RIGHT = frozenset({"age", "in state", "runs", "memory"})
HEADINGS = ("worker", "container", "state", "function", "request", "age", "in state", "runs", "memory")
WORKER_LENGTH = 6
"""The part of a worker's id that the names of its containers hold."""


@dataclass(frozen=True)
class PoolSnapshot:
    """The ids of living workers and their containers, at one moment."""

    workers: Sequence[str]
    containers: Sequence[ContainerSnapshot]


def pool(
    live: Annotated[
        bool, typer.Option("--live", "-l", help="Refresh every second, in place, until Ctrl-C. Needs a terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts: a list of containers.")] = False,
) -> None:
    """Show every container of this host's workers: its state, function, age, runs and memory.

    Finds workers by their data folder: that of the local stack, else NANOGRID_DATA_DIR.

    Exit code: 0 if a worker runs, with or without containers; 3 if none does.
    """
    from nanogrid.cli.target import find_target

    if live and as_json:
        raise typer.BadParameter("--live is for people and --json for scripts: give one of them")
    if live and not sys.stdout.isatty():
        raise typer.BadParameter("--live needs a terminal: leave it out, or use --json")
    data_dir = find_target(required=False).settings.data_dir
    if live:
        _follow(data_dir)
        return
    snapshot = take_snapshot(data_dir)
    if as_json:
        console.print_json([to_wire(container) for container in snapshot.containers])
    elif snapshot.containers:
        console.stdout().print(rendered(snapshot, data_dir))
    else:
        console.note(without_containers(snapshot, data_dir))
    if not snapshot.workers:
        raise typer.Exit(NOTHING_RUNS)


def take_snapshot(data_dir: Path) -> PoolSnapshot:
    """Ask every living worker of this data folder. Raises ConfigurationError if this user may not."""
    from nanogrid.errors import ConfigurationError
    from nanogrid.execution.pool.identity import is_dead, known_owners
    from nanogrid.execution.pool.snapshot import snapshot as containers_of

    try:
        workers = [owner for owner in known_owners(data_dir) if not is_dead(data_dir, owner)]
        containers = containers_of(data_dir)
    except PermissionError as error:
        raise ConfigurationError(
            f"{error.filename} belongs to another user: run this command as the user of the workers in {data_dir}"
        ) from error
    # A worker that has started between the two steps counts if it has answered.
    return PoolSnapshot(sorted({*workers, *(container.worker for container in containers)}), containers)


def to_wire(container: ContainerSnapshot) -> dict[str, Any]:
    """One container as a camelCase JSON object. Ages are `...Seconds`, like the uptime in `status`."""
    from pydantic.alias_generators import to_camel

    from nanogrid.execution.pool.snapshot import as_json

    return {to_camel(re.sub("_s$", "_seconds", name)): value for name, value in as_json(container).items()}


def without_containers(snapshot: PoolSnapshot, data_dir: Path) -> str:
    """The sentence instead of a table without rows."""
    if snapshot.workers:
        return f"{number_of(len(snapshot.workers), 'worker')} of {data_dir} without any container"
    return (
        f"no worker runs with the data folder {data_dir}: start one (nanogrid up --detach), or name another folder in "
        "NANOGRID_DATA_DIR"
    )


def rendered(snapshot: PoolSnapshot, data_dir: Path, *, summary_first: bool = False) -> Group:
    """The table and its summary, or one sentence if there are no containers."""
    from rich.console import Group
    from rich.text import Text

    if not snapshot.containers:
        return Group(Text(without_containers(snapshot, data_dir)))
    parts = (_table(snapshot.containers), Text(summary(snapshot)))
    return Group(*(reversed(parts) if summary_first else parts))


def summary(snapshot: PoolSnapshot) -> str:
    """Containers by state, total memory, workers."""
    counts = Counter(container.state for container in snapshot.containers)
    states = ", ".join(f"{counts[state]} {state}" for state in COLORS if counts[state])
    used = sum(container.memory_bytes or 0 for container in snapshot.containers)
    return (
        f"{number_of(len(snapshot.containers), 'container')}: {states} · {used / MIB:.0f} MiB in use · "
        f"{number_of(len(snapshot.workers), 'worker')}"
    )


def number_of(number: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def human_age(age_s: float) -> str:
    """An age in its largest whole unit: `3 s`, `4 min`, `2 h`, `5 d`. `0 s` if the clock was set back."""
    left_s = max(0, int(age_s))
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if left_s >= unit_s:
            return f"{left_s // unit_s} {unit}"
    return f"{left_s} s"


def memory_of(container: ContainerSnapshot) -> str:
    """Memory in use, of the limit. A question mark if the host does not report it, or the container does not exist yet."""
    used = "?" if container.memory_bytes is None else f"{container.memory_bytes / MIB:.0f}"
    return f"{used} of {container.memory_limit_mb} MiB"


def _table(containers: Sequence[ContainerSnapshot]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in RIGHT else "left")
    for container in containers:
        # Text, because names that a request chooses may look like markup.
        table.add_row(
            Text(container.worker[:WORKER_LENGTH]),
            Text(container.name),
            Text(container.state, style=COLORS.get(container.state, "")),
            Text(container.function_id or ""),
            Text(container.request_id or ""),
            Text(human_age(container.age_s)),
            Text(human_age(container.in_state_s)),
            Text(str(container.runs)),
            Text(memory_of(container)),
        )
    return table


def _follow(data_dir: Path) -> None:
    """Show the pool every second, until Ctrl-C. Workers may start and stop meanwhile."""
    from rich.live import Live

    def now() -> Group:
        # The summary first: a screen that is too small is cut at the bottom.
        return rendered(take_snapshot(data_dir), data_dir, summary_first=True)

    try:
        with Live(now(), console=console.stdout(), auto_refresh=False) as screen:
            while True:
                time.sleep(REFRESH_S)
                screen.update(now(), refresh=True)
    except KeyboardInterrupt:  # the normal end
        return
