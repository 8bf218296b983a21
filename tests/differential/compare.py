"""Runs a program in a new interpreter and in the held one, before and after learning, and reports the differences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.differential.corpus import Program
from tests.support.runner_box import Box, Run, box

ADDRESS = re.compile("0x[0-9a-f]{6,}")
PAYLOAD = {"name": "grüße"}
RUNS_IN_PROCESS = 2
"""In the first run nothing is imported in advance. In the second run the first one's imports are."""
RUNS_WITH_PACKAGES = 5


@contextmanager
def comparison(image: str) -> Iterator[Box]:
    """A container that one subject's programs share, each as the only function it knows."""
    with TemporaryDirectory() as folder, box(Path(folder), image) as here:
        yield here


def differences(here: Box, programs: Iterable[Program]) -> list[str]:
    """Return one paragraph per program that behaves differently by how it is run, or that is not run as expected."""
    found = []
    for program in programs:
        with TemporaryDirectory() as folder:
            here.replace(*program.write(Path(folder)))
        number = RUNS_WITH_PACKAGES if program.packages else RUNS_IN_PROCESS
        runs = [here.run(env=program.env, payload=PAYLOAD) for _ in range(number)]
        bare = here.run(env=program.env, payload=PAYLOAD, in_process=False)
        hows = [run.how for run in runs]
        if program.how not in hows[-1:]:
            found.append(f"{program.name}: expected {program.how}, was run {hows}")
        found += [
            f"{program.name}: run {number} is not like a new interpreter's\n  {describe(run)}\n  {describe(bare)}"
            for number, run in enumerate(runs)
            if describe(run) != describe(bare)
        ]
    return found


def describe(run: Run) -> str:
    """Return everything that a run shows, except addresses in memory, which differ in each run."""
    shown = f"exit {run.exit_code} stdout {run.out!r} stderr {run.err!r} result {run.result!r}"
    return ADDRESS.sub("0x...", shown)
