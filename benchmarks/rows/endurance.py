"""Thousands of runs through one container: nothing grows, inside or outside of it."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.census import MEMORY_UNIT, Census, files_below
from benchmarks.docker_runs import connect
from benchmarks.figures import Measured
from benchmarks.pooled import Function, Ground, ground
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.turns import Progress

TITLE = "5000 runs through one container: growth from after the warm-up to the end"
SAMPLES = 25


def measure(setting: Setting) -> Measured:
    """Check the container, the child and the owner every few runs."""
    runs, owner_pid = setting.rounds(5000), os.getpid()
    with ground(setting.settings(), setting.folder) as here:
        function = here.function(HELLO)

        def in_the_child() -> Census:
            census, progress = Census(), Progress(setting.row, runs)
            function.warm_up()
            first, runner_pid = function.container_id, _first_process(here, function)
            for done in range(runs):
                function.expect("warm")
                progress.at(done)
                if done % (runs // SAMPLES) == 0:
                    here.wait_until_idle()
                    _look(census, here, function, runner_pid, owner_pid)
            if function.container_id != first:
                raise RuntimeError("the runs went through more than one container")
            return census

        census = here.in_child(in_the_child)
    return Measured(setting.row, TITLE, census.samples(), census.lines(), (f"{runs} runs",))


def _look(census: Census, here: Ground, function: Function, runner_pid: int, owner_pid: int) -> None:
    shown = next(one for one in here.containers() if one.container_id == function.container_id)
    census.note("container: memory", (shown.memory_bytes or 0) / 1e6, MEMORY_UNIT)
    census.note("runner: descriptors", len(list(Path(f"/proc/{runner_pid}/fd").iterdir())))
    census.note_process("child", [os.getpid()])
    census.note_process("owner", [owner_pid])
    census.note("files in the data folder", files_below(here.settings.data_dir))


def _first_process(here: Ground, function: Function) -> int:
    api = connect(here.settings)
    try:
        return int(api.inspect_container(function.container_id)["State"]["Pid"])
    finally:
        api.close()
