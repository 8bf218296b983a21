"""numpy and pandas in the archive, as `pip install -t .` makes it, compared with `docker exec` and with a layer.

What putting files right costs is measured from outside: a function that has the same files and imports none of them runs
back to back, and so does hello world. Each run is timed from the moment the one before it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import at_a_time, package_index, vendored
from benchmarks.docker_runs import CODE, DockerExec, connect, options, sleeping
from benchmarks.figures import Goal, Line, Measured, Samples, p95_ratio, ratio
from benchmarks.layered import built
from benchmarks.pooled import Function, Ground, ground
from benchmarks.programs import HELLO, Program
from benchmarks.setting import Setting
from benchmarks.turns import Progress, Variant, in_turn, say

TITLE = "numpy and pandas in the archive, as pip install -t makes it"
WARM = "nanogrid, vendored, warm after a pause"
LAYER = "nanogrid, from requirements.txt, warm after a pause"
EXEC = "docker exec, bytecode present"
BACK_TO_BACK = "nanogrid, vendored, 2 children back to back"
LAYER_BACK_TO_BACK = "nanogrid, from requirements.txt, 2 children back to back"
EXEC_BACK_TO_BACK = "docker exec, 2 threads"
PEAK, LAYER_PEAK = "peak memory, vendored", "peak memory, from requirements.txt"
HELLO_AMONG, HELLO_ALONE = "hello among the same files, back to back", "hello alone, back to back"
COMMAND = ["python3", f"{CODE}/main.py"]
PROGRAM = vendored.PANDAS_PROGRAM
WARM_UP = 5
PAUSE_S = 1.0


def measure(setting: Setting) -> Measured:
    """Everything is downloaded, unpacked, compiled and built before the first measurement."""
    plain = setting.settings(python_image=vendored.IMAGE)
    folder = vendored.installed(vendored.PANDAS, PROGRAM, setting.folder / "host")
    among = vendored.unpacked(folder, HELLO, setting.folder / "among", plain)
    tree = vendored.unpacked(folder, PROGRAM, setting.folder / "vendored", plain)
    vendored.compile_in_image(folder, plain)
    number = sum(1 for path in tree.rglob("*") if path.is_file())
    layered = Program({**PROGRAM.files, "requirements.txt": "\n".join(vendored.PANDAS) + "\n"}, PROGRAM.prints)
    with (
        package_index.serving(vendored.WHEELS) as index_url,
        ground(
            setting.settings(python_image=vendored.IMAGE, build_network="host", build_index_url=index_url),
            setting.folder,
        ) as here,
        built(here.settings, layered, setting.folder, "python") as layer,
    ):
        say(f"{setting.row}: the layer is built in {(layer.build_ms or 0) / 1000:.1f} s")
        own = here.function(PROGRAM, tree=tree)
        by_layer = here.function(PROGRAM, tree=layer.tree, packages=layer.packages, key=layer.key)
        samples, note = here.in_child(lambda: _one_at_a_time(setting, here, own, by_layer))
        files = here.in_child(
            lambda: _put_right(setting, here.function(HELLO, tree=among), here.function(HELLO), setting.rounds(100))
        )
        per_second = _two_at_a_time(setting, here, own, by_layer)
    warm, by_exec = samples[WARM], samples[EXEC]
    two, layer_two, exec_two = (per_second[name] for name in (BACK_TO_BACK, LAYER_BACK_TO_BACK, EXEC_BACK_TO_BACK))
    lines = (
        ratio("median of docker exec", warm, by_exec, Goal(0.1)),
        p95_ratio("p95 of docker exec's median", warm, by_exec),
        ratio("from requirements.txt, median of docker exec", samples[LAYER], by_exec),
        ratio("runs per second, of docker exec", two, exec_two, Goal(15, at_least=True)),
        ratio("from requirements.txt, runs per second, of docker exec", layer_two, exec_two, Goal(15, at_least=True)),
        *_peak_lines(samples),
        Line(
            f"putting {number} unchanged files right",
            files[HELLO_AMONG].median - files[HELLO_ALONE].median,
            "ms",
            Goal(5),
        ),
    )
    notes = (
        f"Python {vendored.PYTHON} on both sides ({vendored.IMAGE}), {', '.join(vendored.PANDAS[:2])}, {number} files",
        note,
    )
    return Measured(setting.row, TITLE, (*samples.values(), *per_second.values(), *files.values()), lines, notes)


def _one_at_a_time(setting: Setting, here: Ground, own: Function, by_layer: Function) -> tuple[dict[str, Samples], str]:
    """Milliseconds in turn, and the peak memory of the same runs."""
    api = connect(here.settings)
    body = options(here.settings.python_image, COMMAND, setting.folder / "host", here.settings)
    for function in (own, by_layer):
        function.warm_up(WARM_UP)
        function.peaks_mib.clear()
    with sleeping(api, body) as container:
        variants: dict[str, Variant] = {
            WARM: lambda: own.expect("warm"),
            LAYER: lambda: by_layer.expect("warm"),
            EXEC: DockerExec(api, container, COMMAND, PROGRAM),
        }
        samples = in_turn(setting.row, variants, rounds=setting.rounds(20), rest=lambda: _pause(here))
    for name, function in ((PEAK, own), (LAYER_PEAK, by_layer)):
        if function.peaks_mib:  # some hosts cannot report the peak of one run
            samples[name] = Samples(name, "MiB", tuple(function.peaks_mib))
    return samples, own.anatomy()


def _pause(here: Ground) -> None:
    """Long enough that whatever a container makes ready for its next run is ready, and shorter than until it is paused."""
    here.wait_until_idle()
    time.sleep(PAUSE_S)


def _put_right(setting: Setting, among: Function, alone: Function, rounds: int) -> dict[str, Samples]:
    """Milliseconds from the end of one run to the end of the next, in turn by tens."""
    by_name = {HELLO_AMONG: among, HELLO_ALONE: alone}
    values: dict[str, list[float]] = {name: [] for name in by_name}
    progress = Progress(setting.row, rounds)
    for done in range(0, rounds, 10):
        for name, function in by_name.items():
            function.warm_up(WARM_UP)
            values[name] += [function.expect("warm") for _ in range(10)]
        progress.at(done)
    return {name: Samples(name, "ms", tuple(found)) for name, found in values.items()}


def _two_at_a_time(setting: Setting, here: Ground, own: Function, by_layer: Function) -> dict[str, Samples]:
    seconds = 1.0 if setting.quick else 4.0
    variants: dict[str, Callable[[], float]] = {
        BACK_TO_BACK: lambda: at_a_time.warm(here, own, seconds),
        LAYER_BACK_TO_BACK: lambda: at_a_time.warm(here, by_layer, seconds),
        EXEC_BACK_TO_BACK: lambda: at_a_time.docker_exec(here, PROGRAM, COMMAND, setting.folder / "host", seconds),
    }
    values: dict[str, list[float]] = {name: [] for name in variants}
    rounds = 2 if setting.quick else 5
    progress = Progress(setting.row, rounds)
    for done in range(rounds):
        for name, variant in variants.items():
            values[name].append(variant())
        progress.at(done)
    return {name: Samples(name, "runs/s", tuple(found)) for name, found in values.items()}


def _peak_lines(samples: dict[str, Samples]) -> tuple[Line, ...]:
    if PEAK not in samples or LAYER_PEAK not in samples:
        return ()
    return (ratio("peak memory, of the same from requirements.txt", samples[PEAK], samples[LAYER_PEAK], Goal(1.15)),)
