"""A function whose requirements.txt names numpy, from its second run on, compared with a bare run with the same wheel."""

from __future__ import annotations

from benchmarks import package_index
from benchmarks.figures import Goal, Measured, p95_ratio, ratio
from benchmarks.layered import built
from benchmarks.pooled import ground
from benchmarks.programs import numpy_program
from benchmarks.rows.warm_python import at_once_line, beside_bare
from benchmarks.setting import Setting
from benchmarks.turns import say

TITLE = "a function whose requirements.txt brings numpy, from its second run on"
NAME = "numpy"


def measure(setting: Setting) -> Measured:
    """The layer is built from a package index on loopback, before anything is measured."""
    python, wheels = setting.bare_python, setting.folder / "wheels"
    version = package_index.download(NAME, setting.image_python, wheels)
    program = numpy_program(version)
    folder = program.write(setting.folder / "host")
    package_index.install(NAME, python, setting.image_python, wheels, setting.bare_packages)
    with (
        package_index.serving(wheels) as index_url,
        ground(setting.settings(build_network="host", build_index_url=index_url), setting.folder) as here,
        built(here.settings, program, setting.folder, "python") as layer,
    ):
        say(f"{setting.row}: numpy {version} is built in {(layer.build_ms or 0) / 1000:.1f} s")
        function = here.function(program, tree=layer.tree, packages=layer.packages, key=layer.key)
        warm, bare, at_once, note = beside_bare(
            setting.row, here, function, program, python, folder, setting.rounds(60)
        )
    lines = (
        ratio("median of bare", warm, bare, Goal(0.1)),
        p95_ratio("p95 of the bare median", warm, bare),
        at_once_line(at_once, bare),
    )
    notes = (*setting.notes, f"numpy {version} on both sides, compiled beforehand", note)
    return Measured(setting.row, TITLE, (warm, bare, at_once), lines, notes)
