"""`nanogrid tuner`: what the tuner knows of each function's memory, and its mode.

The rule: numbers come from the records that workers write; the command computes nothing that a run would not get.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogrid.cli import console
from nanogrid.cli.options import FunctionArgument, JsonOption
from nanogrid.wire.tuner_mode import Mode

if TYPE_CHECKING:
    from nanogrid.tuner.histogram import Bucket
    from nanogrid.tuner.store import TunerEntry, TunerStore

UNKNOWN = 1
"""Exit code if nothing is known of a function."""

BAR_LENGTH = 40
ROWS = 24
"""The most rows of a histogram: neighboring buckets are merged until they fit."""

tuner = typer.Typer(
    help="Show what the tuner has learned of functions' memory, and set what it may do.", no_args_is_help=True
)


@tuner.command("list")
def list_functions(as_json: JsonOption = False) -> None:
    """Show every function that the tuner knows: mode, runs, limits.

    Exit code: 0, even if nothing is known.
    """
    with _tuning() as (tuning, deployment):
        found = sorted(tuning.all(), key=lambda known: known.function_id)
    if as_json:
        console.print_json([to_wire(known, deployment) for known in found])
    elif found:
        _print_table(found, deployment)
    else:
        console.note("no function is known yet: the tuner learns from runs")


@tuner.command()
def show(function_id: FunctionArgument, as_json: JsonOption = False) -> None:
    """Show one function: mode, recommendation with its reason, and a histogram of peak memory.

    Exit code: 0 the function is known; 1 it is not.
    """
    with _tuning() as (tuning, deployment):
        (known,) = tuning.load([function_id])
    if not known.version and known.mode is None:
        console.complain(f"nothing is known of {function_id!r}: no run of it was measured, or that is long ago")
        raise typer.Exit(UNKNOWN)
    if as_json:
        console.print_json({**to_wire(known, deployment), "histogram": histogram_to_wire(known)})
        return
    _print_function(known, deployment)


@tuner.command("set")
def set_mode(
    function_id: FunctionArgument,
    mode: Annotated[
        str, typer.Argument(metavar="MODE", help="off, recommend or apply; default resets it to the deployment's.")
    ],
) -> None:
    """Set what the tuner may do with a function's limit, regardless of the deployment's mode. It applies from the next run on."""
    names = ["default", *(one.value for one in Mode)]
    if mode not in names:
        raise typer.BadParameter(f"{mode!r} is not a mode: accepted are {', '.join(names)}")
    with _tuning() as (tuning, deployment):
        tuning.set_mode(function_id, None if mode == "default" else Mode(mode))
    if mode == "default":
        console.note(f"{function_id} follows the deployment again: {deployment.value}")
    else:
        console.note(f"{function_id}: {mode} from its next run on")


@tuner.command()
def reset(function_id: FunctionArgument) -> None:
    """Forget what was learned of a function; its runs get the requested memory until enough is known again. Its mode stays.

    Exit code: 0 it was forgotten; 1 nothing was known.
    """
    with _tuning() as (tuning, _):
        forgotten = tuning.reset(function_id)
    if not forgotten:
        console.complain(f"nothing is known of {function_id!r}")
        raise typer.Exit(UNKNOWN)
    console.note(f"{function_id}: forgotten; the tuner learns it again")


@contextmanager
def _tuning() -> Iterator[tuple[TunerStore, Mode]]:
    """The deployment's records, and its mode. Redis gets no retries: a user is waiting."""
    from contextlib import closing

    from nanogrid.cli.target import find_target
    from nanogrid.connections.result_redis import connect
    from nanogrid.tuner.store import TunerStore

    settings = find_target().settings
    with closing(connect(settings, retries=0)) as client:
        yield TunerStore(settings, client), settings.tuner_mode


def to_wire(known: TunerEntry, deployment: Mode) -> dict[str, Any]:
    """One function as a camelCase JSON object. `mode` is in effect; `ownMode` is the function's own, null for the deployment's."""
    advice = known.advice
    return {
        "functionId": known.function_id,
        "mode": (known.mode or deployment).value,
        "ownMode": None if known.mode is None else known.mode.value,
        "runs": known.record.runs,
        "requestedMemoryMb": None if advice is None else advice.requested_mb,
        "recommendedMemoryMb": None if advice is None else advice.recommended_mb,
        "nextLimitMb": None if advice is None else _next_limit_mb(known, deployment),
        "setbacks": known.record.setbacks,
        "backoffUntil": known.record.backoff_until_s if known.record.backs_off(time.time()) else None,
        "backoffRuns": known.record.backoff_runs if known.record.backs_off(time.time()) else 0,
        "tip": None if advice is None else advice.sentence,
    }


def histogram_to_wire(known: TunerEntry) -> list[dict[str, float]]:
    """The histogram's buckets: the largest sample in MiB, and the share of all weight."""
    total = known.record.histogram.total
    return [
        {"highestMb": bucket.highest_mb, "share": round(bucket.weight / total, 6)}
        for bucket in known.record.histogram.buckets
    ]


def bars(buckets: Sequence[Bucket], rows: int = ROWS) -> list[tuple[str, float]]:
    """The bars to draw: a range in MiB and its share of all weight, ascending, including empty ranges in between."""
    from nanogrid.tuner.histogram import edge_mb

    if not buckets:
        return []
    (first, *_), (last, *_) = buckets[0], buckets[-1]
    together = -(-(last - first + 1) // rows)
    total = sum(bucket.weight for bucket in buckets)
    drawn = []
    for low in range(first, last + 1, together):
        weight = sum(weight for index, weight, _ in buckets if low <= index < low + together)
        below = edge_mb(low - 1) if low > 0 else 0.0
        drawn.append((f"{below:.0f} - {edge_mb(low + together - 1):.0f}", weight / total))
    return drawn


def _next_limit_mb(known: TunerEntry, deployment: Mode) -> int | None:
    advice = known.advice
    if advice is None:
        return None
    return advice.limit_mb if (known.mode or deployment) is Mode.APPLY else advice.requested_mb


def _print_table(found: Sequence[TunerEntry], deployment: Mode) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("function", "mode", "runs", "asks for", "recommended", "next run", "setbacks"):
        table.add_column(heading, justify="left" if heading in ("function", "mode") else "right")
    for known in found:
        wire = to_wire(known, deployment)
        table.add_row(
            Text(known.function_id),
            Text(wire["mode"] + ("" if known.mode is None else " (own)")),
            str(wire["runs"]),
            _mib(wire["requestedMemoryMb"]),
            _mib(wire["recommendedMemoryMb"]),
            _mib(wire["nextLimitMb"]),
            str(wire["setbacks"]),
        )
    console.stdout().print(table)


def _print_function(known: TunerEntry, deployment: Mode) -> None:
    from rich.text import Text

    out = console.stdout()
    wire = to_wire(known, deployment)
    whose = "of its own" if known.mode is not None else "the deployment's"
    out.print(Text(f"{known.function_id}: {wire['mode']} ({whose})", style="bold"))
    if known.advice is not None:
        out.print(Text(known.advice.sentence))
        out.print(Text(f"the next run of {known.advice.requested_mb} MiB gets {_mib(wire['nextLimitMb'])}"))
    if known.record.backs_off(time.time()):
        left_s, runs = known.record.backoff_until_s - time.time(), known.record.backoff_runs
        out.print(Text(f"it gets what it asks for, for {runs} runs or {left_s:.0f} s: a lowered limit was too small"))
    drawn = bars(known.record.histogram.buckets)
    if not drawn:
        return
    width, most = max(len(label) for label, _ in drawn), max(share for _, share in drawn)
    out.print(Text(f"\npeak memory in MiB of {known.record.runs} runs; recent runs count more", style="dim"))
    for label, share in drawn:
        bar = "█" * max(round(share / most * BAR_LENGTH), 1 if share else 0)
        out.print(Text(f"{label:>{width}}  {bar} {share:.1%}" if share else f"{label:>{width}}"))


def _mib(value: int | None) -> str:
    return "–" if value is None else f"{value} MiB"  # noqa: RUF001  # a dash for "none"
