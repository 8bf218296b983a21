"""Runs one function repeatedly, as requests would, and inspects the pool that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanogrid.errors import NanoGridError
from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.executor import classify
from nanogrid.execution.pool.child.lease import Container, WarmContainer
from nanogrid.execution.pool.snapshot import ContainerSnapshot, snapshot
from nanogrid.result import Outcome, StartKind
from tests.support.rig import Rig, Run
from tests.support.services import wait_until


class Repeated:
    """The files are written once, so every run has the same code and may reuse the previous run's container."""

    def __init__(self, rig: Rig, main: str | dict[str, str], runtime: str = "python", **fields: Any) -> None:
        self._rig = rig
        files = {"main.py": main} if isinstance(main, str) else main
        self.wanted, self.timeout_s = rig.wanted(files, runtime, **fields)

    def run(
        self,
        payload: Any = None,
        *,
        limits: Confinement | None = None,
        during: Callable[[Container], None] | None = None,
        timeout_s: float | None = None,
        **changes: Any,
    ) -> Run:
        """Run once. Raises the errors of the executor, such as ContainerLostError if the container disappeared."""
        wanted = replace(self.wanted, limits=limits or self.wanted.limits, **changes)
        with self._rig.pool.lease(wanted, payload) as container:
            if during is not None:
                during(container)
            report = container.run(timeout_s=self.timeout_s if timeout_s is None else timeout_s)
            self.outcome, _ = classify(report, container)
        return Run(report, report.result.data, container.end, container)

    def retried(self, payload: Any = None) -> str:
        """Run with success, with one retry, as a request would. Return the output."""
        try:
            return self.succeed(payload)[1]
        except NanoGridError as error:
            if not error.retryable:
                raise
            return self.succeed(payload)[1]

    @contextmanager
    def hold(self) -> Iterator[Container]:
        """Lease a container without running anything in it."""
        with self._rig.pool.lease(self.wanted, None) as container:
            yield container

    def succeed(self, payload: Any = None, **changes: Any) -> tuple[StartKind, str]:
        """Run once, with success. Return the start kind and the output."""
        run = self.run(payload, **changes)
        assert self.outcome is Outcome.SUCCEEDED, run.report
        return run.container.start_kind, run.out


def shown(rig: Rig) -> list[ContainerSnapshot]:
    """The containers of the rig's owner."""
    return [one for one in snapshot(rig.settings.data_dir) if one.worker == rig.owner.id]


def states(rig: Rig) -> list[str]:
    """Return their states, sorted."""
    return sorted(one.state for one in shown(rig))


def await_states(rig: Rig, *expected: str, timeout_s: float = 30.0) -> list[ContainerSnapshot]:
    """Wait until the pool has containers in exactly these states. Return them."""
    wait_until(lambda: states(rig) == sorted(expected), f"the pool holds {expected}", timeout_s)
    return shown(rig)


def first_pid(rig: Rig, container_id: str) -> int:
    """Return the host's pid of a container's first process."""
    return int(rig.engine.api.inspect_container(container_id)["State"]["Pid"])


def engine_state(rig: Rig, container_id: str) -> str:
    """The state that `docker ps` shows: `running`, `paused`, ..."""
    return str(rig.engine.api.inspect_container(container_id)["State"]["Status"])


def written(first_pid: int) -> str:
    """Return what the function in the container of this first process has written to its result.

    What the run before has written is there until it is cleaned up.
    """
    try:
        return (Path("/proc") / str(first_pid) / "root" / "nanogrid/run/result.json").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def once_it_runs(fault: Callable[[Container], None]) -> Callable[[Container], None]:
    """For `during`: act on the container as soon as its function has written to its result."""

    def during(container: Container) -> None:
        assert isinstance(container, WarmContainer)
        pid = container._container.link.peer_pid()

        def watch() -> None:
            wait_until(lambda: written(pid) != "", "the function runs")
            fault(container)

        threading.Thread(target=watch).start()

    return during
