"""The child's side of the pool: ask for a container, run in it, give it back.

    with pool.lease(wanted, payload) as container:
        report = container.run(timeout_s=10)

The lease is the connection to the owner; leaving the block, and dying, both end it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanogrid.container import cgroup
from nanogrid.container.engine import End
from nanogrid.container.run import RunReport, Watch
from nanogrid.container.run_folder import RunFolder
from nanogrid.errors import ContainerLostError, PoolExhaustedError
from nanogrid.pool.wire import LeasedContainer, LeaseRequest, Line, error_from_json, short_path
from nanogrid.settings import Settings


class Container:
    """A leased container, ready for one run."""

    def __init__(
        self, leased: LeasedContainer, folder: RunFolder, watch: Watch, line: Line, settings: Settings
    ) -> None:
        self.id = leased.id
        self.name = leased.name
        self.folder = folder
        self._watch = watch
        self._line = line
        self._settings = settings
        self._cgroup = cgroup.locate(leased.id, leased.pid, settings)
        self.end: End | None = None

    def run(self, *, timeout_s: float) -> RunReport:
        """Wait for the function's end and report it. When this returns, nothing of the function is alive."""
        return self._watch.run(
            self._cgroup, start_timeout_s=self._settings.overhead_s / 2, timeout_s=timeout_s, stop=self.destroy
        )

    def destroy(self) -> None:
        """Have the owner kill and remove the container; `end` says how it had ended. Idempotent."""
        if self.end is None:
            self._line.send({"end": True})
            answer = self._line.receive()
            if answer is None:
                raise ContainerLostError(f"the owner of container {self.name} is gone")
            self.end = End(**answer["ended"])


class Pool:
    """Leases containers from the owner that listens at `address`. Holds no state, so it may cross a fork."""

    def __init__(self, address: Path, settings: Settings) -> None:
        self._address = address
        self._settings = settings

    @contextmanager
    def lease(self, wanted: LeaseRequest, payload: Any) -> Iterator[Container]:
        """A container of this caller alone, with `payload` laid out in it, until the block is left.

        Raises a ContainerError where none could be started, PoolExhaustedError where the owner does not answer.
        """
        line = self._connect()
        try:
            folder = RunFolder(Path(_answer(line)["runDir"]))
            folder.create(payload)
            # Opened before the container starts: the end of a pipe shows only to who was there when it was opened.
            with Watch(folder, self._settings.output_limit_bytes) as watch:
                line.send({"lease": asdict(wanted)})
                leased = LeasedContainer(**_answer(line)["container"])
                container = Container(leased, folder, watch, line, self._settings)
                yield container
                container.destroy()
        finally:
            line.close()

    def _connect(self) -> Line:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(self._address) as address:
                connection.connect(address)
        except OSError as error:
            connection.close()
            raise PoolExhaustedError(f"the owner of this worker's containers does not answer: {error}") from error
        return Line(connection)


_owner_address: Path | None = None


def use_owner(address: Path | None) -> None:
    """Say where the owner of this process's containers listens. Set by a worker before it forks its children."""
    global _owner_address
    _owner_address = address


def own_pool(settings: Settings) -> Pool:
    """The pool of this process's worker. Raises PoolExhaustedError outside of one."""
    if _owner_address is None:
        raise PoolExhaustedError("this process has no container owner: functions run only in a NanoGrid worker")
    return Pool(_owner_address, settings)


def _answer(line: Line) -> dict[str, Any]:
    message = line.receive()
    if message is None:
        raise PoolExhaustedError("the owner of this worker's containers hung up")
    if "error" in message:
        raise error_from_json(message["error"])
    return message
