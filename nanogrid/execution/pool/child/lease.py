"""The child's side of the pool: ask for a container, run in it, give it back.

    with pool.lease(wanted, payload) as container:
        report = container.run(timeout_s=10)

The lease is the connection to the owner; leaving the block, and dying, both end it. A container that may be used again stays in
hand for a while: the next lease on the same terms begins without a word to the owner.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from nanogrid.errors import ContainerLostError, NanoGridError, PoolExhaustedError
from nanogrid.execution.container.engine import ExitStatus
from nanogrid.execution.container.hardening import MOUNT
from nanogrid.execution.container.launched_run import LaunchedRun
from nanogrid.execution.container.report import EndReason, RunReport
from nanogrid.execution.container.run import Program, Run
from nanogrid.execution.container.slot import Slot, in_memory
from nanogrid.execution.pool.child.connection import Connection, Grip, understood
from nanogrid.execution.pool.protocol import LeasedContainer, LeaseRequest, Line
from nanogrid.result import StartKind
from nanogrid.settings import Settings

log = logging.getLogger(__name__)


def _nothing() -> None:
    """What is done at the beginning of a run that nobody waits for."""


class Container(ABC):
    """A leased container, ready for one run. `folder` is what it sees as `/nanogrid`."""

    def __init__(self, leased: LeasedContainer, line: Line, settings: Settings, slot: Slot) -> None:
        self.id = leased.id
        self.name = leased.name
        self.start_kind = leased.start
        self.folder = slot
        self._line = line
        self._settings = settings
        self.end: ExitStatus | None = None

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
            self.end = ExitStatus(**understood(answer)["ended"])


class WarmContainer(Container):
    """A container with a runner: it can be used again."""

    def __init__(
        self, connection: Connection, grip: Grip, settings: Settings, wanted: LeaseRequest, slot: Slot, payload: int
    ) -> None:
        super().__init__(grip.leased, connection.line, settings, slot)
        self._connection = connection
        self._grip = grip
        self._wanted = wanted
        self._payload = payload
        self._reusable = False

    def run(self, *, timeout_s: float, begun: Callable[[], None] = _nothing) -> RunReport:
        """Run the function. A container whose run was cut short, or killed for memory, is not used again."""
        run = Run(
            self._grip.link,
            self._grip.cgroup,
            output_limit_bytes=self._settings.output_limit_bytes,
            result_limit_bytes=self._settings.value_limit_bytes,
            uid=self._settings.container_uid,
            used_before=self.start_kind is StartKind.WARM,
        )
        env = self._wanted.env
        if self._wanted.packages_dir:
            env = {**env, "PYTHONPATH": f"{MOUNT}/packages"}
        in_process = self._wanted.in_process
        program = Program(self._wanted.command, env, in_process, compiler_cache=not in_process)
        report = run.run(program, self._payload, timeout_s=timeout_s, thaw=self._go_on, begun=begun)
        self._reusable = report.ended is EndReason.EXITED and not report.usage.oom_kills
        if report.ended is EndReason.LOST:
            self.destroy()
        return report

    def give_back(self) -> None:
        """Keep it in hand, let the owner clean it for the next run, or destroy it."""
        if self._reusable:
            self._connection.put_down(self._grip)
            return
        try:
            self.destroy()
        except NanoGridError as error:  # the run is over and nothing of it lives: its result stands
            log.warning("container %s could not be removed now: %s", self.name, error)
        self._line.send({"end": "done"})

    def _go_on(self) -> None:
        """Thaw it. Asked of the kernel, who pauses and who goes on by hand is no matter; it costs nothing: the run has begun."""
        cgroup = self._grip.cgroup
        if cgroup.is_frozen() and not cgroup.thaw():
            raise ContainerLostError(
                f"container {self.name} cannot be let go on: its cgroup cannot be written any more"
            )


class LaunchedContainer(Container):
    """A container of an image without Python, made for one run."""

    def __init__(self, leased: LeasedContainer, line: Line, settings: Settings, slot: Slot, watch: LaunchedRun) -> None:
        super().__init__(leased, line, settings, slot)
        self._cgroup = leased.cgroup
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
        self.folder.delete_run()
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
        self._free: deque[Connection] = deque()

    @contextmanager
    def lease(self, wanted: LeaseRequest, payload: Any) -> Iterator[Container]:
        """A container of this caller alone, with `payload` laid out in it, until the block is left.

        Raises a ContainerError where none could be started, PoolExhaustedError where none came free in time or the owner
        does not answer.
        """
        connection, leased, grip = self._begin(wanted)
        try:
            with ExitStack() as resources:
                container = self._lay_out(wanted, payload, connection, leased, grip, resources)
                yield container
                with suppress(OSError):  # an owner that is gone needs nothing from us
                    container.give_back()
        except BaseException:
            connection.close()  # whatever happened: the owner destroys the container
            raise
        finally:
            if grip is not None and connection.kept is not grip:
                grip.close()
        self._free.append(connection)

    def _begin(self, wanted: LeaseRequest) -> tuple[Connection, LeasedContainer, Grip | None]:
        """A container, over a connection of the lease before where there is one."""
        connection = self._take(wanted)
        if connection is not None and (found := self._over(connection, wanted)) is not None:
            return connection, *found
        connection = Connection.to_owner(self._address)  # the first one, or the owner was started again since
        if (found := self._over(connection, wanted)) is not None:
            return connection, *found
        raise PoolExhaustedError("the owner of this worker's containers hung up")

    def _over(self, connection: Connection, wanted: LeaseRequest) -> tuple[LeasedContainer, Grip | None] | None:
        """What is in hand on this connection, or what the owner gives. None where that has hung up."""
        try:
            if (grip := connection.pick_up(wanted)) is not None:
                return grip.as_warm(), grip
            if (leased := connection.ask(wanted)) is not None:
                return leased, connection.grip(wanted, leased) if leased.has_runner else None
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _lay_out(
        self,
        wanted: LeaseRequest,
        payload: Any,
        connection: Connection,
        leased: LeasedContainer,
        grip: Grip | None,
        resources: ExitStack,
    ) -> Container:
        slot = Slot(leased.slot)
        if leased.start is not StartKind.WARM:
            slot.place(Path(wanted.code_dir), Path(wanted.packages_dir) if wanted.packages_dir else None)
        if grip is not None:
            descriptor = in_memory(payload)
            resources.callback(os.close, descriptor)
            return WarmContainer(connection, grip, self._settings, wanted, slot, descriptor)
        slot.write_run(wanted.command, wanted.env, payload, self._settings.container_uid)
        watch = resources.enter_context(
            LaunchedRun(
                slot,
                output_limit_bytes=self._settings.output_limit_bytes,
                result_limit_bytes=self._settings.value_limit_bytes,
            )
        )
        return LaunchedContainer(leased, connection.line, self._settings, slot, watch)

    def _take(self, wanted: LeaseRequest | None = None) -> Connection | None:
        """A connection of this process: with what is wanted in hand, else with nothing in hand, else any.

        Those of the process that it was forked from are let go.
        """
        best: Connection | None = None
        for _ in range(len(self._free)):
            try:
                found = self._free.popleft()
            except IndexError:  # another thread was faster
                break
            if found.pid != os.getpid():
                found.close()
                continue
            if best is None:
                best = found
            elif wanted is not None and _rank(found, wanted) > _rank(best, wanted):
                self._free.append(best)
                best = found
            else:
                self._free.append(found)
        return best

    def close(self) -> None:
        """Close the connections."""
        while (connection := self._take()) is not None:
            connection.close()


def _rank(connection: Connection, wanted: LeaseRequest) -> int:
    return 2 if connection.serves(wanted) else int(connection.kept is None)


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
