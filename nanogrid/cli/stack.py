"""`nanogrid up`, `down`, `status` and `env`: the local stack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogrid.cli import console
from nanogrid.cli.options import DataDirOption, JsonOption

if TYPE_CHECKING:
    from nanogrid.local.folder import StackState
    from nanogrid.local.stack import LocalStack, PartStatus

NOT_AS_IT_SHOULD_BE = 1
NOTHING_RUNS = 3
"""Exit code of `status` if no part runs (in init scripts, too, 3 means "not running")."""


def _port_option(server: str, default: int) -> Any:
    return typer.Option(min=1, max=65535, show_default=str(default), help=f"Port of {server}.")


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when everything is ready; `nanogrid down` stops it.")
    ] = False,
    data_dir: DataDirOption = None,
    sqs_port: Annotated[int | None, _port_option("SQS and S3 (one server)", 9324)] = None,
    redis_port: Annotated[int | None, _port_option("Redis", 6390)] = None,
    flower_port: Annotated[int | None, _port_option("Flower", 5555)] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the local stack: SQS and S3, Redis, a worker and Flower, on loopback.

    Parts that already run are kept; parts that died are restarted. Without --detach, it shows the logs, and Ctrl-C stops the
    stack.

    SQS and S3 are in memory: their content is lost when their server stops. Redis keeps its data on disk.
    """
    from nanogrid.cli.foreground import follow
    from nanogrid.cli.steps import StepPrinter
    from nanogrid.local.stack import PortChoice

    if as_json and not detach:
        raise typer.BadParameter("--json needs --detach: without it, the command shows the logs")
    choice = PortChoice(sqs_port, redis_port, flower_port)
    with StepPrinter() as steps:
        stack = _stack(data_dir, steps)
        if not detach:
            raise typer.Exit(follow(stack, choice, _print_places))
        state = stack.up(choice)
    if as_json:
        parts = [part.to_wire() for part in stack.status()]
        console.print_json({"folder": str(stack.folder.root), "parts": parts, "environment": state.environment})
    else:
        _print_places(stack, state)


def down(
    data_dir: DataDirOption = None,
    timeout_s: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for running functions.")
    ] = 20.0,
    as_json: JsonOption = False,
) -> None:
    """Stop the local stack, the worker first. Also cleans up after a crash."""
    from nanogrid.cli.steps import StepPrinter

    with StepPrinter() as steps:
        stack = _stack(data_dir, steps)
        ended = stack.down(timeout_s)
    if as_json:
        console.print_json({"folder": str(stack.folder.root), "ended": ended})
    elif not ended:
        console.note(f"no local stack runs in {stack.folder.root}")


def status(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Check each part of the local stack and show its condition.

    Exit code: 0 all parts answer; 1 some do not; 3 none runs.
    """
    from nanogrid.local.stack import Condition

    stack = _stack(data_dir)
    parts = stack.status()
    if as_json:
        console.print_json({"folder": str(stack.folder.root), "parts": [part.to_wire() for part in parts]})
    else:
        _print_status(stack, parts)
    conditions = {part.condition for part in parts}
    if conditions == {Condition.RUNNING}:
        return
    raise typer.Exit(NOTHING_RUNS if conditions <= {Condition.STOPPED, Condition.DIED} else NOT_AS_IT_SHOULD_BE)


def env(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Print the local stack's environment, for producers.

    In a shell: eval "$(nanogrid env)"
    """
    from nanogrid.errors import ConfigurationError
    from nanogrid.local.environment import shell_lines

    stack = _stack(data_dir)
    state = stack.folder.read()
    if state is None:
        raise ConfigurationError(
            f"no local stack was started in {stack.folder.root}: start it with: nanogrid up --detach"
        )
    if as_json:
        console.print_json(state.environment)
    else:
        typer.echo("\n".join(shell_lines(state.environment)))


def _stack(data_dir: Path | None, report: object = None) -> LocalStack:
    from nanogrid.local.folder import StackFolder
    from nanogrid.local.stack import LocalStack

    folder = StackFolder(data_dir)
    return LocalStack(folder, report) if callable(report) else LocalStack(folder)


def _print_places(stack: LocalStack, state: StackState) -> None:
    from nanogrid.local.folder import default_folder
    from nanogrid.metrics.address import published

    folder = stack.folder.root
    is_default = folder == default_folder().resolve()
    option = "" if is_default else f" --data-dir {folder}"
    out = console.stdout()
    out.print()
    for what, where in (
        ("Flower", f"http://127.0.0.1:{state.ports.flower}"),
        *(("Metrics", f"{address.url}/metrics") for _, address in published(stack.folder.worker_data)),
        ("SQS, S3", f"http://127.0.0.1:{state.ports.sqs}"),
        ("Redis", f"redis://127.0.0.1:{state.ports.redis} (0 results, 1 monitoring)"),
        ("Folder", f"{folder} (logs in logs/)"),
    ):
        out.print(f"[bold]{what:<8}[/] {where}")
    out.print(f'\nProducers:  eval "$(nanogrid env{option})"\nStop it:    nanogrid down{option}')


def _print_status(stack: LocalStack, parts: list[PartStatus]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("part", "condition", "pid", "up", "address", "log"):
        table.add_column(heading, justify="right" if heading in {"pid", "up"} else "left")
    colours = {"running": "green", "not answering": "yellow", "standing still": "red", "died": "red", "stopped": "dim"}
    for part in parts:
        colour = colours[part.condition.value]
        uptime = "" if part.uptime_s is None else _duration(part.uptime_s)
        log = str(part.log.relative_to(stack.folder.root))
        pid = str(part.pid or "")
        table.add_row(part.name, f"[{colour}]{part.condition.value}[/]", pid, uptime, part.address, log)
    out = console.stdout()
    out.print(table)
    out.print(f"folder: {stack.folder.root}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
