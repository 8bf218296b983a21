"""`python -m benchmarks.replay`: days of many functions under every policy, in simulated time, as a table and a picture.

The rule: the tuner's rules were chosen with other seeds than those that are shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.replay.outcome import REQUESTED, Outcome
from benchmarks.replay.report import by_day, by_kind, left_over, table, verdict
from benchmarks.replay.several import ReplayDay, replay
from benchmarks.replay.trace import TraceError, days_of
from nanogrid.tuner.rules import Rules

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
SEEDS = (201, 202, 203, 204)
FUNCTIONS = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, even if a goal is not met; 2 if the trace cannot be read."""
    chosen = _parse(arguments)
    begin = time.monotonic()
    try:
        wanted = _days(chosen)
        found = replay(wanted)
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    together = Outcome()
    for one in found:
        together.add(one)
    days = [(one.name, done) for one, done in zip(wanted, found, strict=True)]
    text = "\n\n".join(
        (_head(days, together, chosen.trace), table(together), by_day(days), by_kind(together), left_over(together))
    )
    print(text, "", *verdict(together), sep="\n")
    _write(together, text, chosen.results)
    print(f"{time.monotonic() - begin:.0f} s")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="synthetic days (default: %(default)s)")
    parser.add_argument("--functions", type=int, default=FUNCTIONS, help="of each day (default: %(default)s)")
    parser.add_argument("--trace", type=Path, help="folder with CSV files of the Azure Functions dataset of 2019")
    parser.add_argument("--days", type=int, nargs="+", help="of the trace (default: the first one that is complete)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table and the picture")
    return parser.parse_args(arguments)


def _days(chosen: argparse.Namespace) -> list[ReplayDay]:
    if chosen.trace is None:
        return [ReplayDay(number, seed, chosen.functions, None) for number, seed in enumerate(chosen.seeds)]
    days = chosen.days or days_of(chosen.trace)[:1]
    return [ReplayDay(number, chosen.seeds[0], chosen.functions, chosen.trace) for number in days]


def _head(days: Sequence[tuple[str, Outcome]], together: Outcome, folder: Path | None) -> str:
    runs = together.once[REQUESTED].runs
    kind = "synthetic day(s)" if folder is None else "day(s) of the trace"
    return (
        f"{len(days)} {kind} with {together.functions} functions and {runs:,.0f} replayed runs; {together.few} functions have fewer "
        f"than the {Rules().minimum_samples} runs that the tuner waits for."
    )


def _write(together: Outcome, text: str, folder: Path) -> None:
    from benchmarks.replay.picture import draw

    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / time.strftime("replay-%Y%m%d-%H%M%S")
    stem.with_suffix(".md").write_text(f"{text}\n")
    draw(together, stem.with_suffix(".png"), stem.with_suffix(".svg"))
    print(f"{stem}.md, .png and .svg are written")


if __name__ == "__main__":
    sys.exit(main())
