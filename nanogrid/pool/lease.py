"""The child's side of the pool: ask for a container, run in it, give it back.

    with pool.lease(wanted, payload) as container:
        report = container.run(timeout_s=10)

The lease is the connection to the owner; leaving the block, and dying, both end it.
"""

from __future__ import annotations

import logging
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from nanogrid.container.engine import End
from nanogrid.container.hardening import MOUNT
from nanogrid.container.launched_run import Watch
from nanogrid.container.link import Link
from nanogrid.container.report import Ended, RunReport
from nanogrid.container.run import Program, Run
from nanogrid.container.slot import Slot
from nanogrid.errors import ContainerLostError, NanoGridError, PoolExhaustedError
from nanogrid.pool.wire import LeasedContainer, LeaseRequest, Line, connect, error_from_json
from nanogrid.result import StartKind
from nanogrid.settings import Settings

log = logging.getLogger(__name__)


def _nothing() -> None:
    """What is done at the beginning of a run that nobody waits for."""


class Container(ABC):
    """A leased container, ready for one run. `folder` holds what the run gives back."""

    def __init__(self, leased: LeasedContainer, line: Line, settings: Settings, slot: Slot) -> None:
        self.id = leased.id
        self.name = leased.name
        self.start_kind = leased.start
        self.folder = slot
        self._line = line
        self._settings = settings
        self._cgroup = leased.cgroup
        self.end: End | None = None

    @abstractmethod
    def run(self, *, timeout_s: float, begun: Callable[[], None] = _nothing) -> RunReport:
        """Run the function to its end and report it. When this returns, nothing of the function is alive.

        `begun` is called once when it runs, beside its first steps.
        """

    @abstractmethod
    def give_back(self) -> None:
        """The run is over and its result is read. Raises OSError where the owner is gone."""

    def destroy(self) -> None:
        """Have the owner kill and remove the container; `end` says how it had ended. Idempotent."""
        if self.end is None:
            with suppress(OSError):
                self._line.send({"end": "destroy"})
            answer = self._line.receive()
            if answer is None:
                raise ContainerLostError(f"the owner of container {self.name} is gone")
            self.end = End(**_understood(answer)["ended"])


class WarmContainer(Container):
    """A container with a runner: it can be used again."""

    def __init__(
        self,
        leased: LeasedContainer,
        line: Line,
        settings: Settings,
        wanted: LeaseRequest,
        slot: Slot,
        stdin: int,
        link: Link,
    ) -> None:
        super().__init__(leased, line, settings, slot)
        self._wanted = wanted
        self._stdin = stdin
        self._link = link
        self._reusable = False

    def run(self, *, timeout_s: float, begun: Callable[[], None] = _nothing) -> RunReport:
        """Run the function. A container whose run was cut short, or killed for memory, is not used again."""
        run = Run(
            self._link,
            self._cgroup,
            output_limit_bytes=self._settings.output_limit_bytes,
            uid=self._settings.container_uid,
            used_before=self.start_kind is StartKind.WARM,
        )
        env = self._wanted.env
        if self._wanted.packages_dir:
            env = {**env, "PYTHONPATH": f"{MOUNT}/packages"}
        in_process = self._wanted.in_process
        program = Program(self._wanted.command, env, in_process, compiler_cache=not in_process)
        report = run.run(program, self._stdin, timeout_s=timeout_s, thaw=self._go_on, begun=begun)
        self._reusable = report.ended is Ended.EXITED and not report.usage.oom_kills
        if report.ended is Ended.LOST:
            self.destroy()
        return report

    def give_back(self) -> None:
        """Let the owner clean it for the next run, or destroy it."""
        if self._reusable:
            self.folder.clear_result()
            self._line.send({"end": "keep"})
            return
        try:
            self.destroy()
        except NanoGridError as error:  # the run is over and nothing of it lives: its result stands
            log.warning("container %s could not be removed now: %s", self.name, error)
        self._line.send({"end": "done"})

    def _go_on(self) -> None:
        """Thaw it. Asked of the kernel, who pauses and who goes on by hand is no matter; it costs nothing: the run has begun."""
        if self._cgroup.is_frozen() and not self._cgroup.thaw():
            raise ContainerLostError(
                f"container {self.name} cannot be let go on: its cgroup cannot be written any more"
            )


class LaunchedContainer(Container):
    """A container of an image without Python, made for one run."""

    def __init__(self, leased: LeasedContainer, line: Line, settings: Settings, slot: Slot, watch: Watch) -> None:
        super().__init__(leased, line, settings, slot)
        self._watch = watch

    def run(self, *, timeout_s: float, begun: Callable[[], None] = _nothing) -> RunReport:
        """Wait for the function's end."""
        return self._watch.run(
            self._cgroup,
            start_timeout_s=self._settings.overhead_s / 2,
            timeout_s=timeout_s,
            stop=self.destroy,
            begun=begun,
        )

    def give_back(self) -> None:
        """It is used up."""
        self.destroy()
        self._line.send({"end": "done"})


class Pool:
    """Leases containers from the owner that listens at `address`.

    A connection is used for one lease after the other. Thread-safe: leases at the same time have connections of their own.
    It may cross a fork: the child makes connections of its own.
    """

    def __init__(self, address: Path, settings: Settings) -> None:
        self._address = address
        self._settings = settings
        self._free: deque[tuple[int, Line]] = deque()

    @contextmanager
    def lease(self, wanted: LeaseRequest, payload: Any) -> Iterator[Container]:
        """A container of this caller alone, with `payload` laid out in it, until the block is left.

        Raises a ContainerError where none could be started, PoolExhaustedError where none came free in time or the owner
        does not answer.
        """
        line, answer = self._ask({"lease": wanted.to_json()})
        try:
            with ExitStack() as resources:
                leased = LeasedContainer.from_json(answer["container"])
                container = self._lay_out(wanted, payload, line, leased, resources)
                yield container
                with suppress(OSError):  # an owner that is gone needs nothing from us
                    container.give_back()
        except BaseException:
            line.close()  # whatever happened: the owner destroys the container
            raise
        self._free.append((os.getpid(), line))

    def _lay_out(
        self, wanted: LeaseRequest, payload: Any, line: Line, leased: LeasedContainer, resources: ExitStack
    ) -> Container:
        slot = Slot(leased.slot)
        if leased.start is not StartKind.WARM:
            slot.place(Path(wanted.code_dir), Path(wanted.packages_dir) if wanted.packages_dir else None)
        stdin = slot.open_payload(payload)
        resources.callback(os.close, stdin)
        if leased.has_runner:
            # Told what it is, Python need not ask the kernel.
            link = Link(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, line.take_descriptor()))
            resources.callback(link.close)
            return WarmContainer(leased, line, self._settings, wanted, slot, stdin, link)
        slot.write_start(wanted.command, wanted.env)
        watch = resources.enter_context(Watch(slot, self._settings.output_limit_bytes))
        return LaunchedContainer(leased, line, self._settings, slot, watch)

    def _ask(self, message: dict[str, Any]) -> tuple[Line, dict[str, Any]]:
        """Send the first message of a lease, over a connection of the lease before where there is one."""
        if (line := self._take()) is not None:
            with suppress(OSError):
                line.send(message)
                if (answer := line.receive()) is not None:
                    return line, self._checked(line, answer)
            line.close()  # the owner was started again since
        line = self._connect()
        try:
            line.send(message)
            return line, self._checked(line, line.receive())
        except OSError as error:
            line.close()
            raise PoolExhaustedError(f"the owner of this worker's containers hung up: {error}") from error

    def _checked(self, line: Line, answer: dict[str, Any] | None) -> dict[str, Any]:
        try:
            return _understood(answer)
        except BaseException:
            line.close()
            raise

    def _connect(self) -> Line:
        try:
            return connect(self._address)
        except OSError as error:
            raise PoolExhaustedError(f"the owner of this worker's containers does not answer: {error}") from error

    def _take(self) -> Line | None:
        """A connection of this process. Those of the process that it was forked from are let go."""
        while self._free:
            with suppress(IndexError):  # another thread was faster
                pid, line = self._free.pop()
                if pid == os.getpid():
                    return line
        return None

    def close(self) -> None:
        """Close the connections."""
        while (line := self._take()) is not None:
            line.close()


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


def _understood(message: dict[str, Any] | None) -> dict[str, Any]:
    if message is None:
        raise PoolExhaustedError("the owner of this worker's containers hung up")
    if "error" in message:
        raise error_from_json(message["error"])
    return message
