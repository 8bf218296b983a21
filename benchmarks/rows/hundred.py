"""A hundred different functions, each in its own warm container, used in turn. Also the cost of an idle container."""

from __future__ import annotations

import psutil

from benchmarks.figures import Goal, Line, Measured, Samples
from benchmarks.pooled import ground
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.turns import Progress

TITLE = "different warm functions held and used in turn on one host, and the memory of an idle container"
TURNS = 3


def measure(setting: Setting) -> Measured:
    """Every run after a function's first must be warm, and in the same container as before."""
    number = setting.rounds(100)
    with ground(setting.settings(), setting.folder) as here:
        functions = [here.function(HELLO.variation(index)) for index in range(number)]
        available_before = psutil.virtual_memory().available

        def in_the_child() -> tuple[list[float], int]:
            progress = Progress(setting.row, number)
            for done, function in enumerate(functions):
                function()
                progress.at(done)
            containers = [function.container_id for function in functions]
            took_ms = [function.expect("warm") for _ in range(TURNS) for function in functions]
            held = sum(function.container_id == own for function, own in zip(functions, containers, strict=True))
            here.wait_until_all_paused()
            return took_ms, held

        took_ms, held = here.in_child(in_the_child)
        used_mb = [(shown.memory_bytes or 0) / 1e6 for shown in here.containers()]
        host_mb = (available_before - psutil.virtual_memory().available) / 1e6 / number
    memory = Samples("idle container, in its cgroup", "MB", tuple(used_mb))
    warm = Samples("warm run, one function after the other", "ms", tuple(took_ms))
    lines = (
        Line("idle warm container, median", memory.median, "MB", Goal(15)),
        Line("idle warm container, largest", max(used_mb), "MB", Goal(15)),
        Line("the host's available memory, less by, per container", host_mb, "MB"),
        Line("different warm functions held and used in turn", held, "", Goal(number, at_least=True)),
        Line(f"median warm run with {number} held", warm.median, "ms"),
    )
    return Measured(setting.row, TITLE, (memory, warm), lines)
