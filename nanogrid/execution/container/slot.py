"""The folder that a container sees as `/nanogrid`: its function's code.

It is under `<data_dir>/runs/<owner>/`, is read-only inside the container, and is removed with it. The rule: code appears in it
by one rename, and from then on the container belongs to that code. A run's payload and result are never on disk: they are passed
as descriptors. Only a launched container, which has one run and no process that could receive descriptors, has them here.
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
"""Mount points: NanoGrid's programs, one run's own files, and the compiler cache in memory."""
PIPES = ("control", "hold", "stdout", "stderr")
"""The named pipes through which a launched container, which has no runner, is watched."""


class Slot:
    """One container's folder: its paths, and how it is created, filled, checked and removed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def payload(self) -> Path:
        """A launched container's payload."""
        return self.path / RUN / "payload.json"

    @property
    def result(self) -> Path:
        """The file that `NANOGRID_RESULT` names in a launched container."""
        return self.path / RUN / "result.json"

    @property
    def control(self) -> Path:
        """The socket at which the runner connects to the host. It is removed afterwards."""
        return self.path / "control.sock"

    @property
    def start_script(self) -> Path:
        """The script that a launched container runs."""
        return self.path / "start.sh"

    def create(self) -> None:
        """Create the folder. Its modes are open because the engine may map user ids; the parent is closed to others."""
        try:
            self.path.mkdir(parents=True)
            self.path.chmod(0o755)
            for name in FOLDERS:
                (self.path / name).mkdir(mode=0o700)  # a tmpfs takes over the mode of the folder that it covers
        except OSError as error:
            self.remove()
            raise ContainerStartError(f"the folder {self.path} could not be created: {error}") from error

    def create_for_launcher(self) -> None:
        """Create the named pipes of a launched container, and the file for its result.

        The container's first process waits until somebody opens `control` to read.
        """
        try:
            (self.path / RUN).chmod(0o755)
            self.result.touch()
            self.result.chmod(0o666)
            for name in PIPES:
                os.mkfifo(self.pipe(name))
                self.pipe(name).chmod(0o666)
        except OSError as error:
            raise ContainerStartError(f"the pipes in {self.path} could not be created: {error}") from error

    def pipe(self, name: str) -> Path:
        """Path of one of PIPES."""
        return self.path / name

    def write_run(self, argv: Sequence[str], env: Mapping[str, str], payload: Any, uid: int) -> None:
        """Write the command and the payload of a launched container. Only the function's user may read them."""
        words = ["env", *(f"{name}={value}" for name, value in env.items()), *argv]
        try:
            _write_for(uid, self.start_script, f"exec {shlex.join(words)}\n".encode())
            _write_for(uid, self.payload, text_of(payload))
        except OSError as error:
            raise ContainerStartError(f"the command could not be written to {self.path}: {error}") from error

    def delete_run(self) -> None:
        """Delete the command and the payload of a launched container."""
        for path in (self.start_script, self.payload):
            path.unlink(missing_ok=True)

    def place(self, code: Path, packages: Path | None) -> None:
        """Give the container its function: a hard-link copy of the cached code, which no run can write to."""
        try:
            for source, name in ((code, CODE), (packages, PACKAGES)):
                if source is not None:
                    draft = self.path / f"{name}.draft"
                    hard_link_copy(source, draft)
                    draft.rename(self.path / name)
        except OSError as error:
            raise ContainerStartError(f"the code could not be linked into {self.path}: {error}") from error

    def problem(self) -> str | None:
        """What has changed in the folder of a warm container, which is read-only for the function. None if nothing has.

        For code and packages, only the top folders are checked: their files belong to the cache.
        """
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if entry.name not in (*FOLDERS, CODE, PACKAGES):
                        return f"{entry.name!r} has appeared in its folder"
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
        """Delete the folder, if it exists. The folders of a hard-link copy are read-only, even for their owner."""
        for parent, _, _ in os.walk(self.path):
            with suppress(OSError):
                os.chmod(parent, 0o700)  # noqa: PTH101  # a path that is walked by name
        shutil.rmtree(self.path, ignore_errors=True)


def text_of(payload: Any) -> bytes:
    """A payload as bytes: JSON text, bytes unchanged, nothing for None."""
    if isinstance(payload, bytes):
        return payload
    return b"" if payload is None else json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")


def in_memory(payload: Any) -> int:
    """A descriptor of a payload's text in memory, sealed against changes. The caller must close it."""
    descriptor = os.memfd_create("payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(text_of(payload))
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except OSError as error:
        os.close(descriptor)
        raise ContainerStartError(f"the payload could not be written to memory: {error}") from error
    return descriptor


def _write_for(uid: int, path: Path, data: bytes) -> None:
    """Write a file that only `uid` may read. If the worker is not root, anyone who may enter its folder can read it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        try:
            os.fchown(descriptor, uid, uid)
        except PermissionError:
            os.fchmod(descriptor, 0o444)
        file.write(data)


def hard_link_copy(source: Path, target: Path) -> None:
    """Make `target` a copy of the tree `source`: files are hard links, folders have the same modes and times."""
    target.mkdir(mode=0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            there = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                hard_link_copy(Path(entry.path), there)
            elif entry.is_symlink():
                there.symlink_to(os.readlink(entry.path))  # noqa: PTH115  # the link's text, unchanged
            else:
                os.link(entry.path, there)
    status = source.stat()
    target.chmod(stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
