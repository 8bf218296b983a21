"""The folder that host and container share during one run: programs, payload, pipes, result file.

It lies under `<data_dir>/runs/<owner>/`, is readable by nobody but the worker and, through the mount, the function, and
goes when the lease ends.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from nanogrid.errors import ContainerStartError
from nanogrid.runner.programs import INSIDE

PROGRAMS = {
    "launch.sh": Path(__file__).with_name("launch.sh"),
    "runner/call_handler.py": INSIDE / "call_handler.py",
}
"""What runs in the container beside the function. Copied, because the engine's host may not see this package."""
PIPES = ("control", "hold", "stdout", "stderr")


class RunFolder:
    """Paths of one run's folder, and the making and reading of what lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.payload = path / "payload.json"
        self.result = path / "result.json"

    def pipe(self, name: str) -> Path:
        """Path of one of PIPES."""
        return self.path / name

    def create(self, payload: Any) -> None:
        """Make the folder. `payload` becomes the JSON text of `payload.json`; the file is empty where it is None.

        The modes are open because the engine may map user ids; the parent folder is closed to everybody else.
        """
        try:
            self.path.mkdir(parents=True)
            self.path.chmod(0o755)
            (self.path / "runner").mkdir()
            for name, program in PROGRAMS.items():
                _write(self.path / name, program.read_bytes(), 0o444)
            text = b"" if payload is None else json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
            _write(self.payload, text, 0o444)
            _write(self.result, b"", 0o666)
            (self.path / "code").mkdir()
            for name in PIPES:
                os.mkfifo(self.pipe(name))
                self.pipe(name).chmod(0o666)
        except OSError as error:
            self.remove()
            raise ContainerStartError(f"the run folder {self.path} could not be made: {error}") from error

    def read_result(self, limit_bytes: int) -> bytes | None:
        """What the function wrote to `NANOGRID_RESULT`. None: nothing, or more than `limit_bytes`."""
        with self.result.open("rb") as file:
            data = file.read(limit_bytes + 1)
        return data if 0 < len(data) <= limit_bytes else None

    def result_size(self) -> int:
        """Bytes that the function wrote to `NANOGRID_RESULT`."""
        return self.result.stat().st_size

    def remove(self) -> None:
        """Delete the folder; one that is gone already is fine."""
        shutil.rmtree(self.path, ignore_errors=True)


def _write(path: Path, data: bytes, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)
