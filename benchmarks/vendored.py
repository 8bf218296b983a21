"""Functions whose archive brings their packages along, as `pip install -t .` makes it.

The rule: both sides have the very same files, and the baseline has their bytecode, written by its own interpreter.
NanoGrid gets what it would unpack from the archive: no bytecode.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks import package_index
from benchmarks.docker_runs import CODE, connect, create, options
from benchmarks.programs import Program
from nanogrid.execution.code.archive import unpack
from nanogrid.execution.code.limits import ArchiveLimits
from nanogrid.execution.code.packing import pack_folder
from nanogrid.settings import Settings

IMAGE = "nanogrid/python:3.9"
PYTHON = "3.9.2"
"""Packages are chosen for the Python of this image, whichever image the other rows use."""

WHEELS = Path(__file__).resolve().parents[1] / "bench" / "wheels"
"""Downloaded wheels stay here, so that a second run of the benchmark needs no network."""

PANDAS = (
    "numpy==2.0.2",
    "pandas==2.3.3",
    "python-dateutil==2.9.0.post0",
    "pytz==2026.6",
    "six==1.17.0",
    "tzdata==2026.6",
)

PANDAS_MAIN = """import numpy as np
import pandas as pd
frame = pd.DataFrame({"number": np.arange(1000)})
print(int(frame["number"].sum()), len(frame))
"""

PANDAS_PROGRAM = Program({"main.py": PANDAS_MAIN}, "499500 1000\n")


def installed(pins: Sequence[str], program: Program, folder: Path) -> Path:
    """A new folder with a function's files and its packages, without bytecode."""
    package_index.fetch(pins, PYTHON, WHEELS)
    program.write(folder)
    package_index.install_into(pins, PYTHON, WHEELS, folder)
    return folder


def unpacked(source: Path, program: Program, folder: Path, settings: Settings) -> Path:
    """What the code cache would hold of `source`, with the program's files in place of its own."""
    for name, text in program.files.items():
        (source / name).unlink(missing_ok=True)
        (source / name).write_text(text)
    tree, archive = folder / "tree", folder / "archive"
    tree.mkdir(parents=True)
    archive.write_bytes(pack_folder(source))
    unpack(archive, tree, ArchiveLimits.of(settings))
    archive.unlink()
    return tree


def compile_in_image(folder: Path, settings: Settings) -> None:
    """Write bytecode beside the sources, by the interpreter of the image."""
    in_image(["python3", "-m", "compileall", "-q", CODE], folder, settings, writable=True)


def in_image(command: list[str], folder: Path, settings: Settings, *, writable: bool = False) -> str:
    """Run a command in a container of its own, with `folder` as its working folder, and return what it printed."""
    body = options(settings.python_image, command, folder, settings)
    if writable:
        body["User"] = f"{os.getuid()}:{os.getgid()}"
        body["HostConfig"]["Binds"] = [f"{folder}:{CODE}:rw"]
    api = connect(settings)
    try:
        made = create(api, body)
        try:
            api.start(made)
            status = api.wait(made)["StatusCode"]
            said = api.logs(made).decode(errors="replace")
        finally:
            api.remove_container(made, force=True)
    finally:
        api.close()
    if status != 0:
        raise RuntimeError(f"{command} ended with {status} in {settings.python_image}: {said[-1000:]}")
    return said
