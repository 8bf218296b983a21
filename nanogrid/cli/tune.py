"""`nanogrid tune`: what a function takes at each size, and which size to give it for cost, for speed and balanced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from nanogrid.cli import console, options
from nanogrid.cli.upload import with_code

if TYPE_CHECKING:
    from nanogrid.tuner.sizes import Size

Number = TypeVar("Number", int, float)

NOTHING_TO_CHOOSE = 1
"""Exit code when the function succeeded at no size."""

SIZES_LIMIT = 64
"""Most sizes of one measurement."""


def tune(
    source: options.SourceArgument,
    memory: Annotated[
        str, typer.Option("--memory", "-m", metavar="MIB,MIB,...", help="Memory limits to measure at, in MiB.")
    ] = "64,128,256,512",
    cpus: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="CPU limits to measure at, each with every memory limit. Default: one."),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", "-n", min=1, max=1000, help="Runs that count, at each size, after one warm-up.")
    ] = 10,
    runtime: options.RuntimeOption = None,
    payload: options.PayloadOption = None,
    stdin: options.StdinOption = None,
    stdin_text: options.StdinTextOption = None,
    timeout_ms: options.TimeoutOption = None,
    env: options.EnvOption = None,
    handler: options.HandlerOption = None,
    function_id: options.FunctionIdOption = None,
    bucket: options.BucketOption = None,
    chart: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png|FILE.svg", help="Also draw a chart. Needs matplotlib (`nanogrid[charts]`)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts: sizes and choices.")] = False,
) -> None:
    """Run a function at several sizes in turn, and say which size to give it.

    It really runs, with the same payload each time: as often as --runs says at each size, and once before to warm up.
    A size is left at its first run that does not succeed, and is not chosen.

    Exit code: 0 there is a choice; 1 the function succeeded at no size; 130 interrupted.
    """
    from nanogrid.cli.chart import check_chart, draw
    from nanogrid.cli.size_runs import Measurement, measured_id, run_at, with_size
    from nanogrid.cli.size_table import print_measured, to_wire
    from nanogrid.cli.target import connect, find_target
    from nanogrid.request import parse_request
    from nanogrid.tuner.sizes import Strategy, choose

    memories = parse_numbers("--memory", memory, int)
    cores = None if cpus is None else parse_numbers("--cpus", cpus, float)
    if chart is not None:
        check_chart(chart)
    chosen = {"runtime": runtime, "functionId": function_id, "timeoutMs": timeout_ms, "handler": handler}
    request = options.request_fields(chosen, env, payload, stdin, stdin_text)
    target = find_target()
    sizes = sizes_of(memories, cores or [target.settings.cpus])
    client = connect(target)
    request = with_code(source, request, bucket, target, client)
    name = request["functionId"]
    request["functionId"] = measured_id(name)
    for size in sizes:
        parse_request(
            with_size(request, size), target.settings, request_id="tune"
        )  # all of them, before any is measured

    with Progress(runs, len(sizes)) as progress:
        measuring = Measurement(sizes, lambda size: run_at(client, request, size, progress.tell))
        try:
            measuring.measure(runs, progress.begin)
        except KeyboardInterrupt:
            console.note("\ninterrupted; the run that was under way is cancelled")
            raise typer.Exit(console.INTERRUPTED) from None

    measured = measuring.measured
    choices = {strategy: best for strategy in Strategy if (best := choose(measured, strategy)) is not None}
    drawn = chart if choices else None
    if drawn is not None:
        draw(measured, choices, drawn, title=f"{name}: {runs} runs at each size")
    if as_json:
        console.print_json(to_wire(name, measured, choices, drawn))
    print_measured(measuring, choices, table=not as_json)
    if drawn is not None:
        console.note(f"chart: {drawn}")
    if not choices:
        raise typer.Exit(NOTHING_TO_CHOOSE)


def parse_numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """The numbers of a list with commas, each once, in ascending order. Raises BadParameter for anything else."""
    try:
        return sorted({kind(word) for word in text.split(",")})
    except ValueError:
        whole = "whole numbers of MiB" if kind is int else "numbers"
        raise typer.BadParameter(
            f"{option}: {text!r} is no list of {whole}, such as {'64,128' if kind is int else '0.5,1'}"
        ) from None


def sizes_of(memories: Iterable[int], cores: Iterable[float]) -> list[Size]:
    """Every memory limit with every number of cores, ascending. Raises BadParameter where they are too many."""
    from nanogrid.tuner.sizes import Size

    sizes = sorted(Size(memory_mb, cpus) for memory_mb in memories for cpus in cores)
    if len(sizes) > SIZES_LIMIT:
        raise typer.BadParameter(f"--memory and --cpus make {len(sizes)} sizes; accepted are {SIZES_LIMIT} at most")
    return sizes


class Progress:
    """A bar on stderr while it is measured, on terminals only. It goes away at the end."""

    def __init__(self, runs: int, sizes: int) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        err = console.stderr()
        self._bar = Bar(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._runs = runs
        self._task = self._bar.add_task("sent", total=(runs + 1) * sizes)
        self._sizes, self._where, self._done_in_round, self._round = sizes, "", 0, 0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, number: int, size: Size) -> None:
        """The next run is in this round (0: warm-ups), at this size."""
        if number != self._round:
            self._round, self._done_in_round = number, 0
        turn = f"round {number} of {self._runs}" if number else "warming up"
        self._where = f"{turn} · {size}"
        # Sizes that were left have no runs any more: a round is a round, however many are in it.
        self._bar.update(
            self._task, completed=number * self._sizes + self._done_in_round, description=self._where, refresh=True
        )
        self._done_in_round += 1

    def tell(self, state: str) -> None:
        """What the run that is under way is doing."""
        self._bar.update(self._task, description=f"{self._where} · {state}")
