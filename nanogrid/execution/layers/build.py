"""One build in one container: from code to a tar of the result, on the builder's disk.

The rule: one loop, one deadline, one reason for the end. What a build writes stays in its container's memory. Its log and its
result leave it through pipes, and are cut at a limit. `inside/build.sh` is the other side.

A build that may run packages' set-up code has a second container beside it. Only the second one has a network and the
credentials of the package index, and it runs no such code (`inside/index.sh`).
"""

from __future__ import annotations

import logging
import os
import selectors
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from nanogrid.errors import ContainerLostError
from nanogrid.execution.container import users
from nanogrid.execution.container.engine import Engine, ExitStatus
from nanogrid.execution.container.hardening import MIB, WORKSPACE, BuildContainer, build_options, index_options
from nanogrid.execution.layers.build_log import BuildLog
from nanogrid.settings import Settings

log = logging.getLogger(__name__)

INSIDE = Path(__file__).with_name("inside")
BUILD_PROGRAMS = ("build.sh", "index_client.py")
INDEX_PROGRAMS = ("index.sh", "index_server.py")
CONSTRAINTS = "constraints.txt"
CHUNK_BYTES = 256 * 1024
LOG_EVERY_S = 5.0
CHECK_EVERY_S = 2.0
"""How often to ask the engine whether the container still runs, while it sends no output."""
END_S = 10.0
"""How long the engine may take to notice that a container has ended."""

FAILED_CODE = 10
NO_PIP_CODE = 12


class Verdict(Enum):
    """How a build ended."""

    BUILT = "built"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    TOO_LARGE = "too large"
    NO_PIP = "no pip"
    NO_INDEX = "what serves the index has ended"
    """Internal: `run` returns NO_PIP or FAILED instead."""


@dataclass(frozen=True)
class IndexRecipe:
    """What the container that serves the package index to a build runs. `files` as in Recipe."""

    arguments: tuple[str, ...]
    env: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """What one build container runs.

    `layer_id`: SHA-256 over everything that decides the result. `source`: the file of the code that asks for the layer.
    `image`: the id of the image. `binds`: read-only mounts, path in the container → path on the host. `files`: further files
    under /nanogrid, name → content. `index`: what serves the package index to a build without a network.
    """

    layer_id: str
    source: str
    image: str
    arguments: tuple[str, ...]
    env: dict[str, str]
    network: str
    binds: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    index: IndexRecipe | None = None

    @property
    def name(self) -> str:
        """The container's name, also used in the log."""
        return f"nanogrid-build-{self.layer_id[:12]}"

    @property
    def index_name(self) -> str:
        """The name of the container that serves the index to it."""
        return f"nanogrid-index-{self.layer_id[:12]}"


class Build:
    """One build. `folder` must exist and be empty; the result is `tar`."""

    def __init__(self, recipe: Recipe, folder: Path, build_log: BuildLog, engine: Engine, settings: Settings) -> None:
        self._recipe = recipe
        self._shared = folder / "shared"
        self._index = folder / "index"
        self._users = folder / "users"
        self._log = build_log
        self._engine = engine
        self._settings = settings
        self._open = ExitStack()
        self._selector = self._open.enter_context(selectors.DefaultSelector())
        self._started = time.monotonic()
        self._heard_at = 0.0
        self._told_at = 0.0
        self._tar_bytes = 0
        self.tar = folder / "result.tar"

    def run(self, labels: dict[str, str]) -> Verdict:
        """Build, and remove the containers in any case. Raises ContainerError if the engine fails."""
        with self._open:
            logged = [self._lay_out(self._shared, BUILD_PROGRAMS, self._recipe.files)]
            result = self._pipe(self._shared / "result")
            if self._recipe.index is not None:
                self._lay_out_gateway()
                logged.append(self._lay_out(self._index, INDEX_PROGRAMS, self._recipe.index.files))
            self._lay_out_users(labels)
            tar = os.open(self.tar, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._open.callback(os.close, tar)
            self._started = time.monotonic()
            index_id = ""
            with ExitStack() as containers:
                if self._recipe.index is not None:
                    options = self._index_options(self._recipe.index, labels)
                    index_id = self._start(containers, self._recipe.index_name, options)
                container_id = self._start(containers, self._recipe.name, self._options(labels))
                self._heard_at = self._told_at = time.monotonic()
                verdict = self._watch(container_id, logged, result, tar)
                if verdict is Verdict.NO_INDEX:
                    return Verdict.NO_PIP if self._end_of(index_id).exit_code == NO_PIP_CODE else Verdict.FAILED
                return verdict or self._judge(self._end_of(container_id))

    def _start(self, containers: ExitStack, name: str, options: dict[str, object]) -> str:
        """Start a container that is removed with `containers`."""
        container_id = self._engine.create(name, options)
        containers.callback(self._engine.remove, container_id)
        self._engine.start_only(container_id)
        return container_id

    def _options(self, labels: dict[str, str]) -> dict[str, object]:
        container = self._container(self._recipe, self._shared, labels)
        return build_options(container, self._settings, binds=self._recipe.binds, network=self._recipe.network)

    def _index_options(self, recipe: IndexRecipe, labels: dict[str, str]) -> dict[str, object]:
        container = self._container(recipe, self._index, labels)
        return index_options(container, self._settings, gateway_dir=str(self._shared / "gateway"))

    def _container(self, recipe: Recipe | IndexRecipe, folder: Path, labels: dict[str, str]) -> BuildContainer:
        return BuildContainer(self._recipe.image, recipe.arguments, recipe.env, str(folder), str(self._users), labels)

    def _lay_out(self, folder: Path, programs: tuple[str, ...], files: dict[str, str]) -> int:
        """Create a folder that a container sees as /nanogrid, and open the pipe of its log. The parent folder is closed."""
        folder.mkdir()
        for name in ("code", "packages", "empty", "gateway"):
            (folder / name).mkdir(0o755)
        for name, text in {**{name: (INSIDE / name).read_text() for name in programs}, **files}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o444)
        for name in ("log", "result", "hold"):
            _make_pipe(folder / name)
        folder.chmod(0o755)
        self._open.callback(os.close, os.open(folder / "hold", os.O_RDWR | os.O_CLOEXEC))
        return self._pipe(folder / "log")

    def _lay_out_users(self, labels: dict[str, str]) -> None:
        """Write the files with the image's users and the functions' user, which the build runs as."""
        self._users.mkdir()
        files = self._engine.files_of(self._recipe.image, users.FILES, labels)
        users.lay_out(self._users, files, self._settings.container_uid, WORKSPACE)

    def _lay_out_gateway(self) -> None:
        """Prepare the folder that the two containers share: one may write to it, the other only reads it."""
        gateway = self._shared / "gateway"
        gateway.chmod(0o777)
        _make_pipe(gateway / "ready")

    def _pipe(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._open.callback(os.close, descriptor)
        self._selector.register(descriptor, selectors.EVENT_READ)
        return descriptor

    def _watch(self, container_id: str, logged: list[int], result: int, tar: int) -> Verdict | None:
        """Read both pipes to their ends. Return why the build must stop, or None if it ended by itself.

        `logged`: the log pipes of the build and of the index container, without which the build cannot continue.
        """
        deadline = self._started + self._settings.longest_build_s
        limit_bytes = self._settings.layer_limit_mb * MIB
        building = {logged[0], result}
        while building & self._selector.get_map().keys():
            now = time.monotonic()
            if now >= deadline:
                return Verdict.TIMED_OUT
            ready = self._selector.select(min(deadline - now, CHECK_EVERY_S))
            for key, _ in ready:
                chunk = self._read(key.fd)
                if key.fd in logged:
                    self._log.add(chunk)
                    if not chunk and key.fd != logged[0]:
                        return Verdict.NO_INDEX
                elif self._tar_bytes + len(chunk) > limit_bytes:
                    return Verdict.TOO_LARGE
                else:
                    self._tar_bytes += len(chunk)
                    _write(tar, chunk)
            if not self._continues(container_id, heard=bool(ready)):
                return None
        return None

    def _read(self, descriptor: int) -> bytes:
        chunk = os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            self._selector.unregister(descriptor)
        return chunk

    def _continues(self, container_id: str, *, heard: bool) -> bool:
        """Log the progress. Return False if a silent container has ended: it may never have opened its pipes."""
        now = time.monotonic()
        if now - self._told_at >= LOG_EVERY_S:
            self._told_at = now
            log.info(
                "layer %s: building for %.0f s: %s",
                self._recipe.layer_id[:12],
                now - self._started,
                self._log.last_line(),
            )
        if heard:
            self._heard_at = now
        elif now - self._heard_at >= CHECK_EVERY_S:
            self._heard_at = now
            return self._engine.is_running(container_id)
        return True

    def _end_of(self, container_id: str) -> ExitStatus:
        """The container's exit status. All its pipes are closed, so the engine reports its end soon."""
        deadline = time.monotonic() + END_S
        while (end := self._engine.end_of(container_id)).running and time.monotonic() < deadline:
            time.sleep(0.01)
        return end

    def _judge(self, end: ExitStatus) -> Verdict:
        if end.exit_code == 0:
            return Verdict.BUILT
        if end.oom_killed:
            return Verdict.OUT_OF_MEMORY
        if end.exit_code == NO_PIP_CODE:
            return Verdict.NO_PIP
        if FAILED_CODE <= end.exit_code < NO_PIP_CODE:
            return Verdict.FAILED
        raise ContainerLostError(
            f"container {self._recipe.name} disappeared while it built the layer of {self._recipe.source}"
        )


def _make_pipe(path: Path) -> None:
    os.mkfifo(path)
    path.chmod(0o666)


def _write(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
