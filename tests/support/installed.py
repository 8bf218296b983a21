"""An installation as by `pip install nanogrid`: the built wheel and its locked dependencies, without a checkout."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.support.services import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "requirements"
UV = (sys.executable, "-m", "uv")
ASK_PIP = (sys.executable, "-m", "pip", "config", "get", "global.index-url")

IMPORTS_ALL = """
import importlib, pkgutil, nanogrid
def broken(name):
    raise
names = [module.name for module in pkgutil.walk_packages(nanogrid.__path__, "nanogrid.", onerror=broken)]
imported = [importlib.import_module(name) for name in names if ".inside" not in name and not name.endswith("__main__")]
print(len(imported), "modules")
"""
"""Imports every module except the programs of containers. Modules of extras are imported where they are used."""

SUBMITS = """
from nanogrid import Client
print(Client().submit({"runtime": "python", "functionId": "f", "s3Bucket": "bucket", "s3Key": "f.zip"}))
"""


class Installed:
    """An environment with the wheel, and a working folder that contains only `hello.py`."""

    def __init__(
        self, folder: Path, *, lock: str = "runtime.txt", extra: str | None = None, python: str = sys.executable
    ) -> None:
        """`lock`: a file of requirements/. `extra`: an extra to install as well, in the versions of the development lock."""
        self.bin, self.work = folder / "venv" / "bin", folder / "work"
        self.work.mkdir()
        (self.work / "hello.py").write_text("import sys; print('hello', sys.stdin.read())\n")
        wheels = folder / "wheels"
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels))
        (wheel,) = map(str, wheels.glob("*.whl"))
        _run(*UV, "venv", "--quiet", "--python", python, str(folder / "venv"))
        install = (*UV, "pip", "install", "--quiet", "--python", str(self.bin / "python"))
        _run(*install, "--require-hashes", "--no-deps", "-r", str(LOCKS / lock))
        _run(*install, "--no-deps", "--no-index", wheel)
        if extra is not None:
            _run(*install, "--constraint", str(LOCKS / "dev.txt"), f"{wheel}[{extra}]")

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """This process's environment without a deployment and without a path to the checkout, plus these variables."""
        strange = ("AWS_", "NANOGRID_", "OTEL_", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        return {**kept, "NANOGRID_LOCAL_DIR": str(self.work / "stack"), "COLUMNS": "200", **variables}

    def run(
        self, program: str, *words: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its programs until it ends."""
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
        """Run one of its programs in the background; returns once it has printed `ready`. Yields its log."""
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

    @contextmanager
    def stack(self) -> Iterator[dict[str, str]]:
        """The local stack, which needs the extra `local`. Yields the variables with which a process finds it."""
        ports = [word for name in ("sqs", "redis", "flower") for word in (f"--{name}-port", str(free_port()))]
        check(self.run("nanogrid", "up", "--detach", *ports), 0, "worker")
        try:
            exported = self.run("nanogrid", "env").stdout.splitlines()
            words = [word for line in exported for word in shlex.split(line) if "=" in word]
            yield dict(word.split("=", 1) for word in words)
        finally:
            check(self.run("nanogrid", "down"), 0, "")


def check(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    """Check the exit code, and that the output has no traceback."""
    both = done.stdout + done.stderr
    assert "Traceback" not in both, both
    assert (done.returncode, said in both) == (code, True), both


@cache
def _uv_environment() -> dict[str, str]:
    """uv does not read pip's configuration, so it gets pip's main index as an option."""
    index = subprocess.run(ASK_PIP, capture_output=True, text=True, check=False).stdout.strip()
    return {**({"UV_DEFAULT_INDEX": index} if index else {}), **os.environ}


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=_uv_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}"
