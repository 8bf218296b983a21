"""C++ with a cached build: build.sh compiled once, run.sh runs the result. The baseline is the same binary as a process."""

from __future__ import annotations

import os

from benchmarks.figures import Goal, Measured, Samples, p95_ratio, ratio
from benchmarks.host import BareRun
from benchmarks.layered import built
from benchmarks.pooled import ground
from benchmarks.programs import BUILT
from benchmarks.setting import Setting
from benchmarks.turns import Variant, in_turn

TITLE = "C++ with a cached build (build.sh)"
WARM = "nanogrid, warm: run.sh runs the built binary"
BARE = "bare binary"


def measure(setting: Setting) -> Measured:
    """The build container's binary also runs on the host, unchanged."""
    with (
        ground(setting.settings(), setting.folder) as here,
        built(here.settings, BUILT, setting.folder, "cpp") as layer,
    ):
        function = here.function(BUILT, "cpp", tree=layer.tree, packages=layer.packages, key=layer.key)
        binary = os.fspath(layer.tree / "main")

        def in_the_child() -> dict[str, Samples]:
            function.warm_up()
            variants: dict[str, Variant] = {
                WARM: lambda: function.expect("warm"),
                BARE: BareRun([binary], BUILT, setting.folder),
            }
            return in_turn(setting.row, variants, rounds=setting.rounds(200), rest=here.wait_until_idle)

        samples = here.in_child(in_the_child)
    warm, bare = samples[WARM], samples[BARE]
    lines = (ratio("median of the bare binary", warm, bare, Goal(2.2)), p95_ratio("p95 of the bare median", warm, bare))
    return Measured(setting.row, TITLE, (warm, bare), lines)
