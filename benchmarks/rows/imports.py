"""A main that imports eleven modules of the standard library, compared with its own bare run."""

from __future__ import annotations

from benchmarks.figures import Goal, Measured, p95_ratio, ratio
from benchmarks.pooled import ground
from benchmarks.programs import IMPORTS
from benchmarks.rows.warm_python import at_once_line, beside_bare
from benchmarks.setting import Setting

TITLE = "a main that imports 11 stdlib modules"


def measure(setting: Setting) -> Measured:
    """The median as a multiple of the bare median."""
    folder, python = IMPORTS.write(setting.folder / "host"), setting.bare_python
    with ground(setting.settings(), setting.folder) as here:
        function = here.function(IMPORTS)
        warm, bare, at_once, note = beside_bare(
            setting.row, here, function, IMPORTS, python, folder, setting.rounds(100)
        )
    lines = (
        ratio("median of bare", warm, bare, Goal(0.1)),
        p95_ratio("p95 of the bare median", warm, bare),
        at_once_line(at_once, bare),
    )
    return Measured(setting.row, TITLE, (warm, bare, at_once), lines, (*setting.notes, note))
