"""Runs per second, two at a time: warm functions in two children, and `docker exec` by two threads.

The rule: each child and each thread has a container of its own, which is ready before the clock starts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.docker_runs import DockerExec, connect, options, sleeping
from benchmarks.pooled import Function, Ground
from benchmarks.programs import Program

AT_A_TIME = 2


def warm(here: Ground, function: Function, seconds: float) -> float:
    """Of a warm function, back to back in each child."""

    def work() -> float:
        function.warm_up()
        return per_second(function, seconds)

    return sum(here.in_children([work] * AT_A_TIME))


def docker_exec(here: Ground, program: Program, command: list[str], folder: Path, seconds: float) -> float:
    """Of `docker exec`, back to back in each thread."""

    def work() -> float:
        found: list[float] = []
        api = connect(here.settings)
        body = options(here.settings.python_image, command, folder, here.settings)
        with ExitStack() as resources:
            runs = [
                DockerExec(api, resources.enter_context(sleeping(api, body)), command, program)
                for _ in range(AT_A_TIME)
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
