"""NanoGrid's side of every comparison: an owner in this process, and functions that run from a child, as in a worker.

The rule: a run is timed from before the lease is asked for to the return of `Container.run`, output complete; what
follows (reading the result file, giving the container back) is not part of the run but is done before the next one.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.children import in_children
from benchmarks.programs import Program
from nanogrid.execution.container.hardening import Confinement, environment
from nanogrid.execution.pool.child.lease import Pool
from nanogrid.execution.pool.owner.owner import Owner
from nanogrid.execution.pool.protocol import LeaseRequest
from nanogrid.execution.pool.snapshot import ContainerSnapshot, snapshot
from nanogrid.request import parse_request
from nanogrid.settings import Settings

T = TypeVar("T")

MIB = 1024 * 1024
PARTS_KEPT = 300
PAUSED = "paused"
RESTING = ("idle", "prewarmed", PAUSED)
TIMEOUT_S = 60.0
WAIT_S = 60.0
POLL_S = 0.01


@dataclass
class Ground:
    """A running owner, and the means to run functions on it."""

    settings: Settings
    owner: Owner
    pool: Pool
    folder: Path

    def function(self, program: Program, runtime: str = "python", **built: Any) -> Function:
        """A function with its own code. `built`: tree, packages and key, if layers made them."""
        tree = built.pop("tree", None) or program.write(self.folder / "code" / uuid.uuid4().hex)
        return Function(self, program, runtime, tree, **built)

    def in_child(self, work: Callable[[], T]) -> T:
        """Call `work` in a forked child, as in a worker, where the owner stays in the parent."""
        return self.in_children([work])[0]

    def in_children(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Call each in its own child, in parallel."""

        def as_a_child(work: Callable[[], T]) -> T:
            self.owner.leave_to_parent()
            return work()

        return in_children([partial(as_a_child, work) for work in works])

    def containers(self) -> list[ContainerSnapshot]:
        """Every container, as the owner shows it. To be called from a child too."""
        return snapshot(self.settings.data_dir)

    def wait_for_prewarmed(self, *, paused: bool = False) -> None:
        """Wait until a container without a function is ready, or even paused, as after an idle time."""
        states = (PAUSED,) if paused else RESTING
        self._wait_until(
            lambda shown: any(one.function_id is None and one.state in states for one in shown),
            "a prewarmed container rests",
        )

    def wait_until_paused(self, container_id: str) -> None:
        """Wait until this container is paused."""
        self._wait_until(
            lambda shown: any(one.container_id == container_id and one.state == PAUSED for one in shown),
            "the container is paused",
        )

    def wait_until_all_paused(self) -> None:
        """Wait until every container is paused."""
        self._wait_until(lambda shown: all(one.state == PAUSED for one in shown), "every container is paused")

    def wait_until_idle(self) -> None:
        """Wait until no container is in use or being cleaned."""
        self._wait_until(lambda shown: all(one.state in RESTING for one in shown), "every container is idle")

    def _wait_until(self, condition: Callable[[list[ContainerSnapshot]], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition(shown := self.containers()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not within {WAIT_S:g} s; the pool shows {shown}")
            time.sleep(POLL_S)


@contextmanager
def ground(settings: Settings, folder: Path, *, prewarm: Sequence[str] = ()) -> Iterator[Ground]:
    """An owner in this process, until the block ends. Enter the block before forking children."""
    owner = Owner(settings)
    owner.start()
    pool = Pool(owner.address, settings)
    try:
        owner.prewarm(prewarm)
        yield Ground(settings, owner, pool, folder)
    finally:
        pool.close()
        owner.stop()


class Function:
    """Code that can be run repeatedly. Raises RuntimeError if a run prints the wrong output."""

    def __init__(
        self,
        ground: Ground,
        program: Program,
        runtime: str,
        tree: Path,
        *,
        packages: Path | None = None,
        key: str = "",
    ) -> None:
        self._ground, self._prints = ground, program.prints.encode()
        function_id = f"bench-{uuid.uuid4().hex[:8]}"
        request = parse_request(
            {"functionId": function_id, "runtime": runtime, "s3Bucket": "none", "s3Key": "none"},
            ground.settings,
            request_id=uuid.uuid4().hex,
        )
        entry = ground.settings.runtime_table[runtime]
        self._wanted = LeaseRequest(
            request.request_id,
            function_id,
            entry.image,
            entry.command,
            environment(request, ground.settings),
            str(tree),
            Confinement(request.memory_mb, request.cpus, request.network),
            key=key or str(tree),
            packages_dir=str(packages) if packages else None,
        )
        self.start_kind = ""
        self.container_id = ""
        self.parts: deque[tuple[float, float, float]] = deque(maxlen=PARTS_KEPT)
        """Of the last runs: milliseconds of the lease, of the run, and of the function alone by the runner's clock."""
        self.peaks_mib: deque[float] = deque(maxlen=PARTS_KEPT)
        """Of the last runs: the peak memory, as their results report it."""

    def __call__(self) -> float:
        """One run. Milliseconds from "lease asked" to "output complete"."""
        begin = time.perf_counter()
        with self._ground.pool.lease(self._wanted, None) as container:
            leased = time.perf_counter()
            report = container.run(timeout_s=TIMEOUT_S)
            ended = time.perf_counter()
        took_ms = (ended - begin) * 1000
        self.parts.append(((leased - begin) * 1000, (ended - leased) * 1000, report.duration_ms))
        if report.usage.peak_memory_bytes is not None:
            self.peaks_mib.append(report.usage.peak_memory_bytes / MIB)
        self.start_kind, self.container_id = container.start_kind.value, container.id
        if report.exit_code != 0 or report.stdout.data != self._prints:
            raise RuntimeError(
                f"{self._wanted.command} ended with {report.exit_code} ({report.ended.name}), printed "
                f"{bytes(report.stdout.data)!r} and {bytes(report.stderr.data)[-1000:]!r}"
            )
        return took_ms

    def expect(self, start_kind: str) -> float:
        """One run that must start this way: cold, prewarmed or warm."""
        took_ms = self()
        if self.start_kind != start_kind:
            raise RuntimeError(f"the run started {self.start_kind} where it had to start {start_kind}")
        return took_ms

    def anatomy(self) -> str:
        """The medians of the parts of the last runs, as a note."""
        lease, run, function = (statistics.median(part) for part in zip(*self.parts, strict=True))
        return f"median parts: lease {lease:.2f} ms, run {run:.2f} ms, in it the function alone {function:.2f} ms"

    def warm_up(self, runs: int = 5) -> None:
        """Run it until it is warm and the container has learned its imports."""
        for _ in range(runs):
            self()
