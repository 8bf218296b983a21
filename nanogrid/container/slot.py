"""The folder that a container sees as `/nanogrid`: its function's code, and what one run is given and gives back.

It lies under `<data_dir>/runs/<owner>/`, is read-only inside the container but for the result file, and goes with the
container. The rule: code appears in it by one rename, and from then on the container belongs to that code.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nanogrid.errors import ContainerStartError

CODE = "code"
PACKAGES = "packages"
FOLDERS = ("runner", "compiler-cache")
"""Where other things are mounted: programs, and the memory of the compiler cache."""
PIPES = ("control", "hold", "stdout", "stderr")
"""How a launched container, one without a runner, is watched."""


class Slot:
    """Paths of one container's folder, and the making, filling and reading of what lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def payload(self) -> Path:
        """The request's payload, for one run."""
        return self.path / "payload.json"

    @property
    def result(self) -> Path:
        """What the function wrote to `NANOGRID_RESULT`."""
        return self.path / "result.json"

    @property
    def control(self) -> Path:
        """Where the runner finds the host, until it has."""
        return self.path / "control.sock"

    @property
    def start_script(self) -> Path:
        """What a launched container is to run."""
        return self.path / "start.sh"

    def create(self) -> None:
        """Make the folder. The modes are open because the engine may map user ids; the parent is closed to others."""
        try:
            self.path.mkdir(parents=True)
            self.path.chmod(0o755)
            for name in FOLDERS:
                (self.path / name).mkdir(mode=0o700)  # a tmpfs takes over the mode of the folder that it covers
            self.result.touch()
            self.result.chmod(0o666)
        except OSError as error:
            self.remove()
            raise ContainerStartError(f"the folder {self.path} could not be made: {error}") from error

    def create_pipes(self) -> None:
        """Make the named pipes of a launched container. The first process waits for whoever reads `control`."""
        try:
            for name in PIPES:
                os.mkfifo(self.pipe(name))
                self.pipe(name).chmod(0o666)
        except OSError as error:
            raise ContainerStartError(f"the pipes in {self.path} could not be made: {error}") from error

    def pipe(self, name: str) -> Path:
        """Path of one of PIPES."""
        return self.path / name

    def write_start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Tell a launched container what to run."""
        words = ["env", *(f"{name}={value}" for name, value in env.items()), *argv]
        try:
            self.start_script.write_text(f"exec {shlex.join(words)}\n")
            self.start_script.chmod(0o444)
        except OSError as error:
            raise ContainerStartError(f"the command could not be written to {self.path}: {error}") from error

    def place(self, code: Path, packages: Path | None) -> None:
        """Give the container its function: a farm of hard links to the cache, where no run can write."""
        try:
            for source, name in ((code, CODE), (packages, PACKAGES)):
                if source is not None:
                    draft = self.path / f"{name}.draft"
                    farm(source, draft)
                    draft.rename(self.path / name)
        except OSError as error:
            raise ContainerStartError(f"the code could not be laid out in {self.path}: {error}") from error

    def open_payload(self, payload: Any) -> int:
        """Write the payload's JSON text (nothing for None) and return a descriptor that reads it, to be closed by the caller.

        A new file each time: whoever still holds the one of the run before sees no change.
        """
        text = b"" if payload is None else json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
        try:
            if not text and _is_empty(self.payload):
                return os.open(self.payload, os.O_RDONLY | os.O_CLOEXEC)
            self.payload.unlink(missing_ok=True)
            descriptor = os.open(self.payload, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            try:
                view = memoryview(text)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fchmod(descriptor, 0o444)
            finally:
                os.close(descriptor)
            return os.open(self.payload, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ContainerStartError(f"the payload could not be written to {self.path}: {error}") from error

    def clear_result(self) -> None:
        """Forget what the run before wrote. The file stays the same one: it is a mount of its own."""
        if self.result_size():
            os.truncate(self.result, 0)

    def result_size(self) -> int:
        """Bytes that the function wrote to `NANOGRID_RESULT`; 0 also when the container, and the folder with it, is gone."""
        try:
            return self.result.stat().st_size
        except FileNotFoundError:
            return 0

    def read_result(self, limit_bytes: int) -> bytes | None:
        """What the function wrote to `NANOGRID_RESULT`. None: nothing, more than `limit_bytes`, or the folder is gone."""
        try:
            with self.result.open("rb") as file:
                data = file.read(limit_bytes + 1)
        except FileNotFoundError:
            return None
        return data if 0 < len(data) <= limit_bytes else None

    def remove(self) -> None:
        """Delete the folder; one that is gone already is fine. Folders of a farm are read-only, also for their owner."""
        for parent, _, _ in os.walk(self.path):
            with suppress(OSError):
                os.chmod(parent, 0o700)  # noqa: PTH101  # a path that is walked by name
        shutil.rmtree(self.path, ignore_errors=True)


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return False


def farm(source: Path, target: Path) -> None:
    """Make `target` a copy of the tree `source` whose files are hard links, with the modes and times of its folders."""
    target.mkdir(mode=0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            there = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                farm(Path(entry.path), there)
            elif entry.is_symlink():
                there.symlink_to(os.readlink(entry.path))  # noqa: PTH115  # the text of the link, as it stands
            else:
                os.link(entry.path, there)
    status = source.stat()
    target.chmod(stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
