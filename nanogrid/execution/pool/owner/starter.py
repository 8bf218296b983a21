"""Starts containers: slot, container, runner, connection; or a launcher if the image has no Python.

Runs in: threads of the worker's main process.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nanogrid.errors import ContainerStartError, NanoGridError
from nanogrid.execution.container import cgroup, users
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.hardening import WORKSPACE, launcher_options, runner_options
from nanogrid.execution.container.link import Hello, Link, Ready, RunnerListener
from nanogrid.execution.container.slot import Slot
from nanogrid.execution.pool import identity
from nanogrid.execution.pool.owner.images import Images
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.runner.programs import OLDEST_PYTHON, lay_out_programs
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

NAME_LENGTH = 60
START_S = 60.0
"""A runner answers within a tenth of a second. A host that takes this long cannot run functions."""


class NoRunnerError(ContainerStartError):
    """The image has no Python that can run the runner."""


class Starter:
    """Starts containers for one owner. Thread-safe.

    All mutable state: `_users` (a folder per image id), guarded by `_users_lock`.
    """

    def __init__(self, settings: Settings, engine: Engine, owner: identity.OwnerIdentity, images: Images) -> None:
        self.settings = settings
        self._engine = engine
        self._owner = owner
        self._images = images
        self._programs = owner.runs / "programs"
        self._users: dict[str, Path] = {}
        self._users_lock = threading.Lock()

    def prepare(self) -> None:
        """Lay out the programs that all containers of this owner share."""
        lay_out_programs(self._programs)

    def start(self, pooled: Pooled, interpreter: str) -> None:
        """Start the container of this record and wait until it can run something. Raises a ContainerError.

        If the image has no usable Python, the container gets a launcher instead of a runner, and serves one run.
        """
        if not self._images.is_without_python(pooled.kind.image_id):
            try:
                self._start_runner(pooled, interpreter)
                return
            except NoRunnerError as error:
                self._images.note_without_python(pooled.image, pooled.kind.image_id, str(error))
                self._discard_attempt(pooled)
        self._start_launcher(pooled)

    def _start_runner(self, pooled: Pooled, interpreter: str) -> None:
        pooled.slot = Slot(self.slot_path(pooled))
        pooled.slot.create()
        began = time.monotonic()
        listener = RunnerListener(pooled.slot.control)
        try:
            self._create(pooled, partial(runner_options, pooled.image, interpreter, compiles=pooled.kind.compiles))
            self._engine.start_only(str(pooled.id))
            container_id = str(pooled.id)
            pooled.link = listener.accept(START_S, lambda: self._engine.is_running(container_id))
            self._await_ready(pooled.link)
        except ContainerStartError as error:
            raise self._explained(pooled, interpreter, error) from error
        finally:
            listener.close()
        pooled.cgroup = cgroup.locate(container_id, pooled.link.peer_pid(), self.settings)
        pooled.thaws_by_cgroup = pooled.cgroup.can_freeze()
        pooled.measure()
        log.debug("container %s: ready after %.0f ms", pooled.name, (time.monotonic() - began) * 1000)

    def _start_launcher(self, pooled: Pooled) -> None:
        pooled.slot = Slot(self.slot_path(pooled))
        pooled.slot.create()
        pooled.slot.create_for_launcher()
        self._create(pooled, partial(launcher_options, pooled.image))
        pid = self._engine.start(str(pooled.id))
        pooled.cgroup = cgroup.locate(str(pooled.id), pid, self.settings)
        pooled.measure()

    def _discard_attempt(self, pooled: Pooled) -> None:
        """Remove the container that cannot have a runner. Its record stays, for the launched container."""
        if pooled.id is not None:
            self._engine.remove(pooled.id)
        if pooled.slot is not None:
            pooled.slot.remove()
        pooled.id, pooled.slot = None, None

    def name_of(self, pooled: Pooled) -> str:
        """The container's name: its function, its worker, its number."""
        what = pooled.function_id or "prewarmed"
        return f"{container_name(what)}-{self._owner.id[:6]}-{pooled.number}"

    def slot_path(self, pooled: Pooled) -> Path:
        """The path of the container's folder."""
        return self._owner.runs / str(pooled.number)

    def labels(self, pooled: Pooled) -> dict[str, str]:
        """The labels of one container of this owner."""
        return {**self._owner.labels, identity.NUMBER_LABEL: str(pooled.number)}

    def _create(self, pooled: Pooled, options: Callable[..., dict[str, Any]]) -> None:
        assert pooled.slot is not None
        body = options(
            pooled.limits,
            self.settings,
            slot_dir=str(pooled.slot.path),
            programs_dir=str(self._programs),
            users_dir=str(self._users_of(pooled)),
            labels=self.labels(pooled),
        )
        pooled.name = self.name_of(pooled)
        pooled.id = self._engine.create(pooled.name, body)

    def _users_of(self, pooled: Pooled) -> Path:
        """The folder with the files that name the users of the container's image. Written for the image's first container."""
        image_id = pooled.kind.image_id
        with self._users_lock:
            if image_id not in self._users:
                files = self._engine.files_of(image_id, users.FILES, self.labels(pooled))
                self._users[image_id] = self._lay_out_users(files)
            return self._users[image_id]

    def _lay_out_users(self, files: dict[str, str]) -> Path:
        try:
            folder = Path(tempfile.mkdtemp(prefix="users-", dir=self._owner.runs))
            try:
                users.lay_out(folder, files, self.settings.container_uid, WORKSPACE)
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        except OSError as error:
            raise ContainerStartError(
                f"the files that name the image's users could not be written to {self._owner.runs}: {error}"
            ) from error
        return folder

    def _await_ready(self, link: Link) -> None:
        deadline = time.monotonic() + START_S
        hello = link.receive(deadline - time.monotonic())
        if not isinstance(hello, Hello) or hello.version < OLDEST_PYTHON:
            raise ContainerStartError(f"the runner sent {hello} instead of a usable version of Python")
        ready = link.receive(deadline - time.monotonic())
        if not isinstance(ready, Ready):
            raise ContainerStartError(f"the runner sent {ready} instead of becoming ready")

    def _explained(self, pooled: Pooled, interpreter: str, error: ContainerStartError) -> ContainerStartError:
        """NoRunnerError if the image is the reason: the interpreter is missing, or ended at once."""
        if re.search(r"executable file not found|no such file or directory", str(error)) and interpreter in str(error):
            return NoRunnerError(str(error))
        if pooled.id is None:
            return error
        try:
            end = self._engine.end_of(pooled.id)
        except NanoGridError:
            return error
        if not end.running and end.exit_code > 0 and not end.oom_killed:
            return NoRunnerError(f"{error} (exit code {end.exit_code})")
        return error


def container_name(what: str) -> str:
    """`nanogrid-{what}`, safe and short: characters that Docker refuses become `-`, and a hash keeps changed names distinct."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", what)[:NAME_LENGTH]
    if safe != what:
        safe = f"{safe}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    return f"nanogrid-{safe}"
