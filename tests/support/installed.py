"""What `pip install nanogrid` leaves on a host: the built wheel and its locked dependencies, no extra, no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.services import wait_until

ROOT = Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip")
QUIETLY = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-deps")


class Installed:
    """An environment made from the wheel, and a folder to work in that holds nothing of the project."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.work = folder / "venv" / "bin", folder / "work"
        self.work.mkdir()
        wheels = folder / "wheels"
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels))
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
        install = (*PIP, "--python", str(self.bin / "python"), "install", *QUIETLY)
        _run(*install, "--require-hashes", "-r", str(ROOT / "requirements" / "runtime.txt"))
        _run(*install, "--no-index", *map(str, wheels.glob("*.whl")))

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """This process's environment without any deployment or way to the checkout, with these variables."""
        strange = ("AWS_", "NANOGRID_", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        return {**kept, "NANOGRID_LOCAL_DIR": str(self.work / "stack"), "COLUMNS": "200", **variables}

    def run(
        self, program: str, *words: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its programs to the end."""
        return subprocess.run(
            [str(self.bin / program), *words],
            capture_output=True,
            text=True,
            cwd=self.work,
            env=self.environment(variables or {}),
            timeout=60,
            check=False,
        )

    @contextmanager
    def running(self, command: str, *, variables: Mapping[str, str], ready: str) -> Iterator[Path]:
        """Run one of its programs beside a test, from the moment it has said `ready`. Yields its log."""
        program, *words = command.split()
        log = self.work / f"{words[2]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(self.bin / program), *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.work,
                env=self.environment(variables),
            )

        def said() -> bool:
            assert process.poll() is None, f"{command} ended:\n{log.read_text()[-3000:]}"
            return ready in log.read_text()

        try:
            wait_until(said, f"{command} says {ready!r}")
            yield log
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"{command} did not end:\n{log.read_text()[-3000:]}") from None


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}"
