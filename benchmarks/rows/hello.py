"""Hello world in a warm container, compared with hello world as a process of the host."""

from __future__ import annotations

from benchmarks.figures import Goal, Measured, p95_ratio, ratio
from benchmarks.pooled import ground
from benchmarks.programs import HELLO
from benchmarks.rows.warm_python import at_once_line, beside_bare
from benchmarks.setting import Setting

TITLE = "hello world in a warm container, from lease asked to output complete"


def measure(setting: Setting) -> Measured:
    """Median and 95th percentile as multiples of the bare median."""
    folder, python = HELLO.write(setting.folder / "host"), setting.bare_python
    with ground(setting.settings(), setting.folder) as here:
        function = here.function(HELLO)
        warm, bare, at_once, note = beside_bare(setting.row, here, function, HELLO, python, folder, setting.rounds(300))
    lines = (
        ratio("median of bare", warm, bare, Goal(0.2)),
        p95_ratio("p95 of the bare median", warm, bare, Goal(0.35)),
        at_once_line(at_once, bare),
    )
    return Measured(setting.row, TITLE, (warm, bare, at_once), lines, (*setting.notes, note))
