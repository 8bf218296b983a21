"""The folder that a container sees as `/nanogrid`: its function's code.

It lies under `<data_dir>/runs/<owner>/`, is read-only inside the container, and goes with it. The rule: code appears in it by one
rename, and from then on the container belongs to that code. What a run is given and gives back is never on disk: it travels by
descriptors. Only a launched container, which has one run and nobody inside to take them, finds it here.
"""

from __future__ import annotations

import fcntl
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
RUN = "run"
FOLDERS = ("runner", RUN, "compiler-cache")
"""Where other things are mounted: programs, one run's own files, and the memory of the compiler cache."""
PIPES = ("control", "hold", "stdout", "stderr")
"""How a launched container, one without a runner, is watched."""


class Slot:
    """Paths of one container's folder, and the making, filling and reading of what lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def payload(self) -> Path:
        """A launched container's payload."""
        return self.path / RUN / "payload.json"

    @property
    def result(self) -> Path:
        """What the function of a launched container writes to `NANOGRID_RESULT`."""
        return self.path / RUN / "result.json"

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
        except OSError as error:
            self.remove()
            raise ContainerStartError(f"the folder {self.path} could not be made: {error}") from error

    def create_for_launcher(self) -> None:
        """Make the named pipes of a launched container, and the file for its result.

        The first process waits for whoever reads `control`.
        """
        try:
            (self.path / RUN).chmod(0o755)
            self.result.touch()
            self.result.chmod(0o666)
            for name in PIPES:
                os.mkfifo(self.pipe(name))
                self.pipe(name).chmod(0o666)
        except OSError as error:
            raise ContainerStartError(f"the pipes in {self.path} could not be made: {error}") from error

    def pipe(self, name: str) -> Path:
        """Path of one of PIPES."""
        return self.path / name

    def write_run(self, argv: Sequence[str], env: Mapping[str, str], payload: Any, uid: int) -> None:
        """Tell a launched container what to run, and give it its payload. Only the function's user may read that."""
        words = ["env", *(f"{name}={value}" for name, value in env.items()), *argv]
        try:
            _write_for(uid, self.start_script, f"exec {shlex.join(words)}\n".encode())
            _write_for(uid, self.payload, text_of(payload))
        except OSError as error:
            raise ContainerStartError(f"the command could not be written to {self.path}: {error}") from error

    def forget_run(self) -> None:
        """Delete what the run was given."""
        for path in (self.start_script, self.payload):
            path.unlink(missing_ok=True)

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

    def problem(self) -> str | None:
        """What is not as it was made in the folder of a warm container: for its user it is read-only. None: all is well.

        Of code and packages only the folders are looked at: their files are the cache's own.
        """
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if entry.name not in (*FOLDERS, CODE, PACKAGES):
                        return f"{entry.name!r} has come into its folder"
                    if (
                        not stat.S_ISDIR(status.st_mode)
                        or status.st_uid != os.geteuid()
                        or status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH)
                    ):
                        return f"{entry.name!r} in its folder has mode {status.st_mode:o} and owner {status.st_uid}"
        except OSError as error:
            return f"its folder cannot be read: {error}"
        return None

    def remove(self) -> None:
        """Delete the folder; one that is gone already is fine. Folders of a farm are read-only, also for their owner."""
        for parent, _, _ in os.walk(self.path):
            with suppress(OSError):
                os.chmod(parent, 0o700)  # noqa: PTH101  # a path that is walked by name
        shutil.rmtree(self.path, ignore_errors=True)


def text_of(payload: Any) -> bytes:
    """A payload's JSON text, and bytes as they are; nothing for None."""
    if isinstance(payload, bytes):
        return payload
    return b"" if payload is None else json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")


def in_memory(payload: Any) -> int:
    """A descriptor of a payload's text, to be closed by the caller. It is on no disk, and nobody can change it."""
    descriptor = os.memfd_create("payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(text_of(payload))
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except OSError as error:
        os.close(descriptor)
        raise ContainerStartError(f"the payload could not be laid out in memory: {error}") from error
    return descriptor


def _write_for(uid: int, path: Path, data: bytes) -> None:
    """Write a file that `uid` may read, and nobody else: where the worker is not root, whoever may enter its folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        try:
            os.fchown(descriptor, uid, uid)
        except PermissionError:
            os.fchmod(descriptor, 0o444)
        file.write(data)


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
