"""Twenty packages in the archive, one by one, each with a program that uses it, compared with a bare run in the same image.

The bare run has the bytecode of all packages. NanoGrid gets the archive without any.
"""

from __future__ import annotations

from benchmarks import vendored
from benchmarks.bare_in_image import bare_in_image
from benchmarks.figures import TIMES, Goal, Line, Measured, Samples, ratio
from benchmarks.packages import PACKAGES, Package
from benchmarks.pooled import Ground, ground
from benchmarks.rows.warm_python import WARM
from benchmarks.setting import Setting
from benchmarks.turns import Variant, in_turn, say

TITLE = "twenty packages in the archive, one by one"
BARE = "bare python3 main.py in the image"
ALL = "warm runs, of bare"


def measure(setting: Setting) -> Measured:
    """Each package has a function of its own."""
    found: dict[str, tuple[Samples, Samples]] = {}
    with ground(setting.settings(python_image=vendored.IMAGE), setting.folder) as here:
        for package in PACKAGES:
            found[package.name] = _of(package, setting, here)
            warm, bare = found[package.name]
            say(f"{setting.row}: {package.name} {warm.median / bare.median:.2f} of {bare.median:.0f} ms")
    each = [ratio(name, warm, bare) for name, (warm, bare) in found.items()]
    ratios = Samples(ALL, TIMES, tuple(line.figure for line in each))
    worst = max(each, key=lambda line: line.figure)
    lines = (
        Line("median over the packages, of bare", ratios.median, TIMES, Goal(0.25)),
        Line(f"the worst, {worst.what}, of bare", worst.figure, TIMES, Goal(0.6)),
        *each,
    )
    notes = (f"Python {vendored.PYTHON} on both sides ({vendored.IMAGE})",)
    return Measured(setting.row, TITLE, (ratios,), lines, notes)


def _of(package: Package, setting: Setting, here: Ground) -> tuple[Samples, Samples]:
    """Milliseconds of warm and of bare runs, in turn."""
    program, folder = package.program, setting.folder / package.name
    source = vendored.installed(package.pins, program, folder / "host")
    tree = vendored.unpacked(source, program, folder / "code", here.settings)
    vendored.compile_in_image(source, here.settings)
    function = here.function(program, tree=tree)

    def in_the_child() -> dict[str, Samples]:
        function.warm_up()
        with bare_in_image(here.settings, program, source, folder / "meeting") as bare:
            variants: dict[str, Variant] = {WARM: lambda: function.expect("warm"), BARE: bare}
            return in_turn(package.name, variants, rounds=setting.rounds(12), warm_up=1, rest=here.wait_until_idle)

    samples = here.in_child(in_the_child)
    return samples[WARM], samples[BARE]
