"""`nanogrid pool`: every container that the workers of a data folder hold right now.

The one rule: it asks the workers themselves, over their sockets in the data folder; the engine is not asked, and nothing
is changed.
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
"""Exit code when there is no worker, as with `status`."""

REFRESH_S = 1.0
MIB = 1024 * 1024

COLOURS = {
    "starting": "yellow",
    "prewarmed": "cyan",
    "leased": "bold green",
    "cleaning": "yellow",
    "idle": "green",
    "pausing": "yellow",
    "paused": "dim",
    "ending": "red",
}
"""Every state, in the order in which the summary counts them."""

RIGHT = frozenset({"age", "in state", "runs", "memory"})
HEADINGS = ("worker", "container", "state", "function", "request", "age", "in state", "runs", "memory")
WORKER_LENGTH = 6
"""As many characters of a worker's id as its containers have in their names."""


@dataclass(frozen=True)
class PoolSnapshot:
    """What was seen at one moment: ids of living workers, and their containers."""

    workers: Sequence[str]
    containers: Sequence[ContainerSnapshot]


def pool(
    live: Annotated[
        bool, typer.Option("--live", "-l", help="Show it anew every second, in place, until Ctrl-C. Needs a terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts: a list of containers.")] = False,
) -> None:
    """Show every container of this host's workers: its state, function, age, runs and memory.

    Workers are found by their data folder: the local stack's, else NANOGRID_DATA_DIR.

    Exit code: 0 a worker runs, with containers or without; 3 none does.
    """
    from nanogrid.cli.target import find_target

    if live and as_json:
        raise typer.BadParameter("--live is for people and --json for scripts: give one of them")
    if live and not sys.stdout.isatty():
        raise typer.BadParameter("--live needs a terminal; without one, leave it out or take --json")
    data_dir = find_target(required=False).settings.data_dir
    if live:
        _follow(data_dir)
        return
    seen = look(data_dir)
    if as_json:
        console.print_json([to_wire(shown) for shown in seen.containers])
    elif seen.containers:
        console.stdout().print(rendered(seen, data_dir))
    else:
        console.note(nothing_held(seen, data_dir))
    if not seen.workers:
        raise typer.Exit(NOTHING_RUNS)


def look(data_dir: Path) -> PoolSnapshot:
    """Ask every living worker of this data folder. Raises ConfigurationError where this user may not."""
    from nanogrid.errors import ConfigurationError
    from nanogrid.execution.pool.identity import is_dead, known_owners
    from nanogrid.execution.pool.snapshot import snapshot

    try:
        workers = [owner for owner in known_owners(data_dir) if not is_dead(data_dir, owner)]
        containers = snapshot(data_dir)
    except PermissionError as error:
        raise ConfigurationError(
            f"{error.filename} belongs to somebody else: run this command as the user of the workers in {data_dir}"
        ) from error
    # One that came or went between the two questions counts by its answer.
    return PoolSnapshot(sorted({*workers, *(shown.worker for shown in containers)}), containers)


def to_wire(shown: ContainerSnapshot) -> dict[str, Any]:
    """One container as a camelCase JSON object; ages are `...Seconds`, as the uptime of `status` is."""
    from pydantic.alias_generators import to_camel

    from nanogrid.execution.pool.snapshot import as_json

    return {to_camel(re.sub("_s$", "_seconds", name)): value for name, value in as_json(shown).items()}


def nothing_held(seen: PoolSnapshot, data_dir: Path) -> str:
    """The sentence in place of a table without rows."""
    if seen.workers:
        return f"{counted(len(seen.workers), 'worker')} of {data_dir} without any container"
    return (
        f"no worker runs with the data folder {data_dir}: start one (nanogrid up --detach), or name another folder by "
        "NANOGRID_DATA_DIR"
    )


def rendered(seen: PoolSnapshot, data_dir: Path, *, summary_first: bool = False) -> Group:
    """The table and its summary, or the sentence in place of both."""
    from rich.console import Group
    from rich.text import Text

    if not seen.containers:
        return Group(Text(nothing_held(seen, data_dir)))
    parts = (_table(seen.containers), Text(summary(seen)))
    return Group(*(reversed(parts) if summary_first else parts))


def summary(seen: PoolSnapshot) -> str:
    """Containers by state, memory in all, workers."""
    counts = Counter(shown.state for shown in seen.containers)
    states = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])
    used = sum(shown.memory_bytes or 0 for shown in seen.containers)
    return (
        f"{counted(len(seen.containers), 'container')}: {states} · {used / MIB:.0f} MiB in use · "
        f"{counted(len(seen.workers), 'worker')}"
    )


def counted(number: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def human_age(age_s: float) -> str:
    """An age in its largest whole unit: `3 s`, `4 min`, `2 h`, `5 d`. Clocks that were set back give `0 s`."""
    left_s = max(0, int(age_s))
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if left_s >= unit_s:
            return f"{left_s // unit_s} {unit}"
    return f"{left_s} s"


def memory_of(shown: ContainerSnapshot) -> str:
    """Memory now, of the limit. A host that does not tell, or a container that is not there yet, gives a question mark."""
    used = "?" if shown.memory_bytes is None else f"{shown.memory_bytes / MIB:.0f}"
    return f"{used} of {shown.memory_limit_mb} MiB"


def _table(containers: Sequence[ContainerSnapshot]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in RIGHT else "left")
    for shown in containers:
        # Text: what a request named may look like markup.
        table.add_row(
            Text(shown.worker[:WORKER_LENGTH]),
            Text(shown.name),
            Text(shown.state, style=COLOURS.get(shown.state, "")),
            Text(shown.function_id or ""),
            Text(shown.request_id or ""),
            Text(human_age(shown.age_s)),
            Text(human_age(shown.in_state_s)),
            Text(str(shown.runs)),
            Text(memory_of(shown)),
        )
    return table


def _follow(data_dir: Path) -> None:
    """Show the pool anew every second, until Ctrl-C. Workers may come and go meanwhile."""
    from rich.live import Live

    def now() -> Group:
        # A screen that is too small for all containers is cut at its bottom.
        return rendered(look(data_dir), data_dir, summary_first=True)

    try:
        with Live(now(), console=console.stdout(), auto_refresh=False) as screen:
            while True:
                time.sleep(REFRESH_S)
                screen.update(now(), refresh=True)
    except KeyboardInterrupt:  # the way it ends
        return
