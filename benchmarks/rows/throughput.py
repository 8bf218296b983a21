"""Runs a second with two at a time on one host: warm, as bare processes, and by docker exec."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.docker_runs import CODE, DockerExec, connect, options, sleeping
from benchmarks.figures import Goal, Measured, Samples, ratio
from benchmarks.host import BareRun
from benchmarks.pooled import Function, Ground, ground
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.turns import Progress

TITLE = "throughput of warm hello runs, 2 children on one host"
WARM = "nanogrid, 2 children"
BARE = "bare subprocess, 2 processes"
EXEC = "docker exec, 2 threads"
AT_A_TIME = 2
COMMAND = ["python3", f"{CODE}/main.py"]


def measure(setting: Setting) -> Measured:
    """Each round lets every variant run for a while, one after the other."""
    rounds, seconds = setting.rounds(50) // 5, 0.5 if setting.quick else 2.0
    folder, python = HELLO.write(setting.folder / "host"), setting.bare_python
    values: dict[str, list[float]] = {WARM: [], BARE: [], EXEC: []}
    progress = Progress(setting.row, rounds)
    with ground(setting.settings(), setting.folder) as here:
        function = here.function(HELLO)
        variants: dict[str, Callable[[], float]] = {
            WARM: lambda: _warm(here, function, seconds),
            BARE: lambda: _bare(here, python, folder, seconds),
            EXEC: lambda: _exec(here, folder, seconds),
        }
        for done in range(rounds):
            for name, variant in variants.items():
                values[name].append(variant())
            progress.at(done)
    warm, bare, docker = (Samples(name, "runs/s", tuple(found)) for name, found in values.items())
    lines = (
        ratio("of bare subprocess", warm, bare, Goal(2.5, at_least=True)),
        ratio("of docker exec", warm, docker, Goal(15, at_least=True)),
    )
    return Measured(setting.row, TITLE, (warm, bare, docker), lines, tuple(setting.notes))


def _warm(here: Ground, function: Function, seconds: float) -> float:
    def work() -> float:
        function.warm_up()
        return per_second(function, seconds)

    return sum(here.in_children([work] * AT_A_TIME))


def _bare(here: Ground, python: Path, folder: Path, seconds: float) -> float:
    def work() -> float:
        run = BareRun([str(python), "main.py"], HELLO, folder)
        run()
        return per_second(run, seconds)

    return sum(here.in_children([work] * AT_A_TIME))


def _exec(here: Ground, folder: Path, seconds: float) -> float:
    """Each thread has its own container, as each child has."""

    def work() -> float:
        found: list[float] = []
        api = connect(here.settings)
        body = options(here.settings.python_image, COMMAND, folder, here.settings)
        with ExitStack() as resources:
            runs = [
                DockerExec(api, resources.enter_context(sleeping(api, body)), COMMAND, HELLO) for _ in range(AT_A_TIME)
            ]
            threads = [threading.Thread(target=lambda run=run: found.append(per_second(run, seconds))) for run in runs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if len(found) != AT_A_TIME:
            raise RuntimeError("a thread of docker execs failed; its error is above")
        return sum(found)

    return here.in_child(work)


def per_second(run: Callable[[], object], seconds: float) -> float:
    """Finished runs per second, measured over this many seconds."""
    begin, number = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds:
        run()
        number += 1
    return number / passed
