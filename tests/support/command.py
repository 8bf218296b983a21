"""The `nanogrid` command as a user runs it: a separate process, with an environment that names no deployment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.services import free_port

ENTRY = [sys.executable, "-c", "from nanogrid.cli import main; main()"]


class CommandLine:
    """Runs `nanogrid` against the local stack of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"sqs": free_port(), "redis": free_port(), "flower": free_port()}

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment without any deployment, with the stack's folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "NANOGRID_"))}
        return {**kept, "NANOGRID_LOCAL_DIR": str(self.folder)}

    @property
    def port_options(self) -> list[str]:
        """Options with free ports for the stack."""
        return [word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))]

    def run(
        self, *words: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end; output as bytes."""
        return subprocess.run(
            [*ENTRY, *words],
            input=stdin,
            capture_output=True,
            env={**self.environment, **(variables or {})},
            timeout=150,
            check=False,
        )

    def ok(self, *words: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> str:
        """Run, expect exit code 0, and return stdout as text."""
        done = self.run(*words, stdin=stdin, variables=variables)
        assert done.returncode == 0, (words, done.returncode, done.stdout.decode(), done.stderr.decode())
        return done.stdout.decode()

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Run in the background, with both streams in one pipe."""
        return subprocess.Popen(
            [*ENTRY, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,
        )

    def up(self) -> dict[str, int]:
        """Start the stack and return the process id of each part."""
        self.ok("up", "--detach", *(self.port_options if not self.state else []))
        return self.pids

    @property
    def state(self) -> dict[str, Any]:
        """The state file, empty if there is none."""
        path = self.folder / "stack.json"
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return state

    @property
    def pids(self) -> dict[str, int]:
        """Process ids from the state file."""
        return {name: record["pid"] for name, record in self.state["processes"].items()}
