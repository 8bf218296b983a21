"""`python -m benchmarks [ROW ...] [--quick]`: measure, print, and write JSON, a picture and a table.

The rule: exit code 0 says that every goal was met, 1 that one was not, 2 that a row could not be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.docker_runs import remove_left
from benchmarks.figures import Measured, all_met
from benchmarks.machine import describe, load
from benchmarks.rows import ROWS
from benchmarks.setting import Setting
from benchmarks.table import block, document, markdown
from benchmarks.turns import say
from nanogrid.settings import Settings

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    chosen = _parse(arguments)
    settings = Settings()
    remove_left(settings)
    machine = describe(settings)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    measured, failed = _measure(chosen.rows or list(ROWS), quick=chosen.quick)
    machine["load_after"] = load()
    print(f"load before {machine['load_before']}, after {machine['load_after']}")
    _write(measured, machine, chosen.results)
    if failed:
        print(f"could not be measured: {', '.join(failed)}")
        return 2
    return 0 if all_met(measured) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    known = "\n".join(f"  {name:12} {row.title}" for name, row in ROWS.items())
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of: {' '.join(ROWS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: to check that it works, not for figures to quote"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON, the picture and the table")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"rows:\n{known}"
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.rows if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}: name some of {', '.join(ROWS)}")
    return chosen


def _measure(names: Sequence[str], *, quick: bool) -> tuple[list[Measured], list[str]]:
    """Measure one row after the other. A row that fails is reported, and the others continue."""
    measured, failed = [], []
    for name in names:
        begin = time.monotonic()
        say(f"{name}: {ROWS[name].title} …")
        try:
            with Setting.made(name, quick=quick) as setting:
                row = ROWS[name].measure(setting)
        except Exception:  # noqa: BLE001  # whatever went wrong, measure the other rows
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"\n{block(row)}", flush=True)
        say(f"{name}: {time.monotonic() - begin:.0f} s")
        measured.append(row)
    return measured, failed


def _write(measured: list[Measured], machine: dict[str, object], folder: Path) -> None:
    from benchmarks.picture import draw

    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / time.strftime("%Y%m%d-%H%M%S")
    table = markdown(measured)
    stem.with_suffix(".json").write_text(json.dumps(document(measured, machine), indent=1) + "\n")
    stem.with_suffix(".md").write_text(table)
    draw(measured, stem.with_suffix(".png"))
    print(f"\n{table}\n{stem}.json, .png and .md are written")


if __name__ == "__main__":
    sys.exit(main())
