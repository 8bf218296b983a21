"""The first baseline: a program as a plain process of this host, started as cheaply as a worker possibly could.

That is `subprocess.Popen` with `close_fds=False` (the descriptors of Python are not inherited anyway; it saves closing
them) and `communicate`: on Linux a vfork and an exec, three pipes, and the output read to its end.

The rule: nothing of this machine slows the baseline. The interpreter stands in an environment of its own without any
packages (packages of a host bring `.pth` files, which cost about a millisecond each start), and variables that change
how Python starts or buffers are taken away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.programs import Program

SPOILING = ("PYTHON", "LD_", "NANOGRID_", "AWS_", "PIP_")
"""Prefixes of variables that a bare run does not get."""

CANDIDATES = (
    "/usr/bin/python{version}",
    "/usr/bin/python3",
    "/usr/local/bin/python{version}",
    "/usr/local/bin/python3",
)


def environment() -> dict[str, str]:
    """The environment of a bare run."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SPOILING)}


def interpreter(version: str, folder: Path) -> Path:
    """A bare interpreter of this version ("3.11") if the host has one, else the host's own python3.

    It stands in a new environment in `folder`, without packages.
    """
    found = [Path(name.format(version=version)) for name in CANDIDATES]
    matching = [path for path in found if path.exists() and version_of(path) == version]
    base = next(iter(matching), None) or shutil.which("python3")
    subprocess.run([str(base), "-m", "venv", "--without-pip", str(folder)], check=True, env=environment())
    return folder / "bin" / "python3"


def version_of(python: Path) -> str:
    """Major and minor version of an interpreter, such as "3.11"."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([str(python), "-c", code], text=True, env=environment()).strip()


class BareRun:
    """Runs one program as a process of the host. Raises RuntimeError if the output is wrong."""

    def __init__(self, argv: Sequence[str], program: Program, folder: Path) -> None:
        self._argv, self._prints, self._folder = list(argv), program.prints.encode(), folder
        self._environment = environment()

    def __call__(self) -> None:
        """One run, output complete."""
        process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=self._environment,
            close_fds=False,
        )
        out, err = process.communicate(b"null")
        if out != self._prints or process.returncode != 0:
            raise RuntimeError(f"the bare run of {self._argv} failed with {process.returncode}: {err.decode()[-500:]}")
