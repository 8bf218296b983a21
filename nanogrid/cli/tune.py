"""`nanogrid tune`: measures a function at several sizes, and recommends a size for cost, for speed, and balanced."""

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
"""Exit code if the function succeeded at no size."""

SIZES_LIMIT = 64
"""The most sizes in one measurement."""


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
    """Run a function at several sizes in turn, and recommend a size.

    The function really runs, with the same payload each time: --runs times at each size, and once before that to warm up. A
    size is dropped, and not recommended, after its first run that does not succeed.

    Exit code: 0 there is a recommendation; 1 the function succeeded at no size; 130 interrupted.
    """
    from nanogrid.cli.chart import check_chart, draw
    from nanogrid.cli.size_runs import SizeRuns, measured_id, run_at, with_size
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
    request = with_code(source, request, bucket, target)
    name = request["functionId"]
    request["functionId"] = measured_id(name)
    for size in sizes:
        parse_request(
            with_size(request, size), target.settings, request_id="tune"
        )  # all of them, before any is measured

    with Progress(runs, len(sizes)) as progress:
        size_runs = SizeRuns(sizes, lambda size: run_at(client, request, size, progress.show))
        try:
            size_runs.measure(runs, progress.begin)
        except KeyboardInterrupt:
            console.note("\ninterrupted; the current run was cancelled")
            raise typer.Exit(console.INTERRUPTED) from None

    measured = size_runs.measured
    choices = {strategy: best for strategy in Strategy if (best := choose(measured, strategy)) is not None}
    drawn = chart if choices else None
    if drawn is not None:
        draw(measured, choices, drawn, title=f"{name}: {runs} runs at each size")
    if as_json:
        console.print_json(to_wire(name, measured, choices, drawn))
    print_measured(size_runs, choices, table=not as_json)
    if drawn is not None:
        console.note(f"chart: {drawn}")
    if not choices:
        raise typer.Exit(NOTHING_TO_CHOOSE)


def parse_numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """The numbers of a comma-separated list, each once, in ascending order. Raises BadParameter for any other text."""
    try:
        return sorted({kind(word) for word in text.split(",")})
    except ValueError:
        whole = "whole numbers of MiB" if kind is int else "numbers"
        raise typer.BadParameter(
            f"{option}: {text!r} is no list of {whole}, such as {'64,128' if kind is int else '0.5,1'}"
        ) from None


def sizes_of(memories: Iterable[int], cores: Iterable[float]) -> list[Size]:
    """Every memory limit with every number of cores, ascending. Raises BadParameter if there are too many."""
    from nanogrid.tuner.sizes import Size

    sizes = sorted(Size(memory_mb, cpus) for memory_mb in memories for cpus in cores)
    if len(sizes) > SIZES_LIMIT:
        raise typer.BadParameter(f"--memory and --cpus make {len(sizes)} sizes: at most {SIZES_LIMIT} are accepted")
    return sizes


class Progress:
    """A progress bar on stderr, on terminals only. It disappears at the end."""

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
        """Show that the next run is in this round (0: warm-ups), at this size."""
        if number != self._round:
            self._round, self._done_in_round = number, 0
        turn = f"round {number} of {self._runs}" if number else "warming up"
        self._where = f"{turn} · {size}"
        # Dropped sizes have no more runs: a round counts as complete, however few sizes are left.
        self._bar.update(
            self._task, completed=number * self._sizes + self._done_in_round, description=self._where, refresh=True
        )
        self._done_in_round += 1

    def show(self, state: str) -> None:
        """Show the state of the current run."""
        self._bar.update(self._task, description=f"{self._where} · {state}")
