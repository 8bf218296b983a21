"""The child's side of the pool: lease a container, run in it, give it back.

    with pool.lease(request, payload) as container:
        report = container.run(timeout_s=10)

Runs in: the children of the worker.

The lease is the connection to the owner: it ends when the block is left, and when the child dies. The child retains a container
that can be used again; the next lease on the same terms starts without a message to the owner.
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
from nanogrid.execution.pool.child.connection import ChildContainer, Connection, checked
from nanogrid.execution.pool.protocol import LeasedContainer, LeaseRequest, Line
from nanogrid.result import StartKind
from nanogrid.settings import Settings

log = logging.getLogger(__name__)


def _nothing() -> None:
    """The default for `begun`: does nothing."""


class Container(ABC):
    """A leased container, ready for one run. `folder` is mounted in it as `/nanogrid`."""

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
        """Run the function to its end and report the run. When this returns, no process of the function is alive.

        `begun` is called once after the run has started, while it runs.
        """

    @abstractmethod
    def give_back(self) -> None:
        """The run has ended and its result is read. Raises OSError if the owner is gone."""

    def destroy(self) -> None:
        """Have the owner kill and remove the container; `end` is how its first process had ended. Idempotent."""
        if self.end is None:
            with suppress(OSError):
                self._line.send({"end": "destroy"})
            answer = self._line.receive()
            if answer is None:
                raise ContainerLostError(f"the owner of container {self.name} is gone")
            self.end = ExitStatus(**checked(answer)["ended"])


class WarmContainer(Container):
    """A container with a runner, which can be used again."""

    def __init__(
        self,
        connection: Connection,
        container: ChildContainer,
        settings: Settings,
        request: LeaseRequest,
        slot: Slot,
        payload: int,
    ) -> None:
        super().__init__(container.leased, connection.line, settings, slot)
        self._connection = connection
        self._container = container
        self._request = request
        self._payload = payload
        self._reusable = False

    def run(self, *, timeout_s: float, begun: Callable[[], None] = _nothing) -> RunReport:
        """Run the function. A container whose run was cut short, or had a process killed for memory, is not used again."""
        run = Run(
            self._container.link,
            self._container.cgroup,
            output_limit_bytes=self._settings.output_limit_bytes,
            result_limit_bytes=self._settings.value_limit_bytes,
            uid=self._settings.container_uid,
            used_before=self.start_kind is StartKind.WARM,
        )
        env = self._request.env
        if self._request.packages_dir:
            env = {**env, "PYTHONPATH": f"{MOUNT}/packages"}
        in_process = self._request.in_process
        program = Program(self._request.command, env, in_process, compiler_cache=not in_process)
        report = run.run(program, self._payload, timeout_s=timeout_s, thaw=self._thaw, begun=begun)
        self._reusable = report.ended is EndReason.EXITED and not report.usage.oom_kills
        if report.ended is EndReason.LOST:
            self.destroy()
        return report

    def give_back(self) -> None:
        """Retain the container, let the owner clean it for the next run, or destroy it."""
        if self._reusable:
            self._connection.retain(self._container)
            return
        try:
            self.destroy()
        except NanoGridError as error:  # the run has ended and no process of it is alive: its result is valid
            log.warning("container %s could not be removed now: %s", self.name, error)
        self._line.send({"end": "done"})

    def _thaw(self) -> None:
        """Thaw the container. The kernel is asked, so it does not matter who froze it. This costs no time: the run has started."""
        cgroup = self._container.cgroup
        if cgroup.is_frozen() and not cgroup.thaw():
            raise ContainerLostError(
                f"container {self.name} is frozen and cannot be thawed: its cgroup is not writable any more"
            )


class LaunchedContainer(Container):
    """A container of an image without Python, started for one run."""

    def __init__(self, leased: LeasedContainer, line: Line, settings: Settings, slot: Slot, watch: LaunchedRun) -> None:
        super().__init__(leased, line, settings, slot)
        self._cgroup = leased.cgroup
        self._watch = watch

    def run(self, *, timeout_s: float, begun: Callable[[], None] = _nothing) -> RunReport:
        """Wait until the function ends."""
        return self._watch.run(
            self._cgroup,
            start_timeout_s=self._settings.overhead_s / 2,
            timeout_s=timeout_s,
            stop=self.destroy,
            begun=begun,
        )

    def give_back(self) -> None:
        """Destroy the container: it serves one run."""
        self.folder.delete_run()
        self.destroy()
        self._line.send({"end": "done"})


class Pool:
    """Leases containers from the owner that listens at `address`.

    A connection carries one lease after another. Thread-safe: concurrent leases have separate connections. Fork-safe: a forked
    process opens its own connections.
    """

    def __init__(self, address: Path, settings: Settings) -> None:
        self._address = address
        self._settings = settings
        self._free: deque[Connection] = deque()

    @contextmanager
    def lease(self, request: LeaseRequest, payload: Any) -> Iterator[Container]:
        """A container for this caller alone, with `payload` in it, until the block is left.

        Raises a ContainerError if no container could be started, PoolExhaustedError if none became free in time or the owner
        does not answer.
        """
        connection, leased, reusable = self._begin(request)
        try:
            with ExitStack() as resources:
                container = self._lay_out(request, payload, connection, leased, reusable, resources)
                yield container
                with suppress(OSError):  # the owner is gone and needs nothing
                    container.give_back()
        except BaseException:
            connection.close()  # whatever happened, the owner destroys the container
            raise
        finally:
            if reusable is not None and connection.retained is not reusable:
                reusable.close()
        self._free.append(connection)

    def _begin(self, request: LeaseRequest) -> tuple[Connection, LeasedContainer, ChildContainer | None]:
        """A container, over the connection of an earlier lease if there is one."""
        connection = self._take(request)
        if connection is not None and (found := self._lease_over(connection, request)) is not None:
            return connection, *found
        connection = Connection.to_owner(self._address)  # the first one, or the owner has been restarted
        if (found := self._lease_over(connection, request)) is not None:
            return connection, *found
        raise PoolExhaustedError("the owner of this worker's containers hung up")

    def _lease_over(
        self, connection: Connection, request: LeaseRequest
    ) -> tuple[LeasedContainer, ChildContainer | None] | None:
        """The retained container of this connection, or one from the owner. None if the owner has hung up."""
        try:
            if (retained := connection.reuse_retained(request)) is not None:
                return retained.as_warm(), retained
            if (leased := connection.ask(request)) is not None:
                return leased, connection.child_container(request, leased) if leased.has_runner else None
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _lay_out(
        self,
        request: LeaseRequest,
        payload: Any,
        connection: Connection,
        leased: LeasedContainer,
        reusable: ChildContainer | None,
        resources: ExitStack,
    ) -> Container:
        slot = Slot(leased.slot)
        if leased.start is not StartKind.WARM:
            slot.place(Path(request.code_dir), Path(request.packages_dir) if request.packages_dir else None)
        if reusable is not None:
            descriptor = in_memory(payload)
            resources.callback(os.close, descriptor)
            return WarmContainer(connection, reusable, self._settings, request, slot, descriptor)
        slot.write_run(request.command, request.env, payload, self._settings.container_uid)
        watch = resources.enter_context(
            LaunchedRun(
                slot,
                output_limit_bytes=self._settings.output_limit_bytes,
                result_limit_bytes=self._settings.value_limit_bytes,
            )
        )
        return LaunchedContainer(leased, connection.line, self._settings, slot, watch)

    def _take(self, request: LeaseRequest | None = None) -> Connection | None:
        """A free connection of this process: one whose retained container serves the request, else one without, else any.

        Connections of the process that this one was forked from are closed.
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
            elif request is not None and _rank(found, request) > _rank(best, request):
                self._free.append(best)
                best = found
            else:
                self._free.append(found)
        return best

    def close(self) -> None:
        """Close the connections."""
        while (connection := self._take()) is not None:
            connection.close()


def _rank(connection: Connection, request: LeaseRequest) -> int:
    return 2 if connection.can_serve(request) else int(connection.retained is None)
