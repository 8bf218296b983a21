"""One child's lease, seen from the owner: give a container out, hear how it went, clean it or destroy it.

The rule: a lease that ends in any other way than by the child's own word destroys its container.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from nanogrid.container import cgroup
from nanogrid.container.engine import End, Engine
from nanogrid.container.hardening import MIB, Confinement, launcher_options
from nanogrid.container.link import Ready, Unfit
from nanogrid.container.run_folder import RunFolder
from nanogrid.errors import ContainerLostError, NanoGridError
from nanogrid.pool import identity
from nanogrid.pool.images import Images
from nanogrid.pool.policy import Kind, Wish
from nanogrid.pool.removing import remove
from nanogrid.pool.starting import NoRunnerError, Starter
from nanogrid.pool.states import State
from nanogrid.pool.stock import Grant, Pooled, Stock
from nanogrid.pool.wire import LeasedContainer, Line, error_to_json
from nanogrid.result import StartKind

log = logging.getLogger(__name__)

SETTLE_S = 30.0
"""How long a runner may take to clean up and be ready again. It takes milliseconds, or what the function's imports take."""

CHOICES = 16
"""How many containers that turned out to be gone a lease looks at before it gives up."""


class Lease:
    """One lease. Used by one thread."""

    def __init__(
        self, line: Line, stock: Stock, starter: Starter, images: Images, engine: Engine, owner: identity.Owner
    ) -> None:
        self._line = line
        self._stock = stock
        self._starter = starter
        self._images = images
        self._engine = engine
        self._owner = owner
        self._pooled: Pooled | None = None
        self._run_folder: RunFolder | None = None

    def serve(self, request: dict[str, Any]) -> None:
        """Answer the child until it gives the container back, or is gone."""
        try:
            pooled, leased = self._lease(request)
        except NanoGridError as error:
            self._line.send({"error": error_to_json(error)})
            return
        if leased is not None:
            assert pooled.link is not None
            self._line.send({"container": leased.to_json()}, pooled.link.fileno())
        elif not self._launch(pooled):
            return
        while (message := self._line.receive()) is not None:
            if message.get("end") == "keep":
                self._keep(pooled)
                return
            if message.get("end") == "destroy":
                self._line.send({"ended": asdict(self._destroy(pooled))})
                return
        log.info("container %s: the child is gone; its container goes too", pooled.name)

    def end(self) -> None:
        """Remove what was not given back."""
        self._remove()
        if self._run_folder is not None:
            self._run_folder.remove()

    def _lease(self, request: dict[str, Any]) -> tuple[Pooled, LeasedContainer | None]:
        """A container, and what the child needs to know of it; None for that where it has to be launched."""
        limits = Confinement(**request["limits"])
        image = request["image"]
        kind = Kind(self._images.id_of(image), limits.network)
        wish = Wish(kind, request["key"], request["function_id"], limits.memory_mb)
        for _ in range(CHOICES):
            grant = self._stock.acquire(
                wish,
                image=image,
                limits=limits,
                request_id=request["request_id"],
                wait_s=request["wait_s"],
                still_wanted=self._line.is_open,
            )
            self._pooled = grant.pooled
            if grant.start is StartKind.COLD:
                return grant.pooled, self._start(grant, request["interpreter"])
            if (leased := self._wake(grant, limits)) is not None:
                return grant.pooled, leased
            self._remove()  # it is gone: look again
        raise ContainerLostError(f"{CHOICES} warm containers in a row were gone: is somebody removing them?")

    def _start(self, grant: Grant, interpreter: str) -> LeasedContainer | None:
        pooled = grant.pooled
        if self._images.is_without_python(pooled.kind.image_id):
            return None
        try:
            self._starter.start(pooled, interpreter)
        except NoRunnerError as error:
            self._images.note_without_python(pooled.image, pooled.kind.image_id, str(error))
            self._discard_attempt(pooled)
            return None
        self._stock.move(pooled, State.LEASED)
        return self._leased(pooled, StartKind.COLD, thaw=False)

    def _wake(self, grant: Grant, limits: Confinement) -> LeasedContainer | None:
        """Make a container that waited ready for its run. None where it is gone."""
        pooled = grant.pooled
        assert pooled.link is not None
        if not pooled.link.is_alive():
            log.warning("container %s is gone: it ended while it was not in use", pooled.name)
            return None
        try:
            if (pooled.limits.memory_mb, pooled.limits.cpus) != (limits.memory_mb, limits.cpus):
                self._engine.limit(str(pooled.id), limits.memory_mb * MIB, limits.cpus)
                pooled.limits = limits
            # Asked of the kernel: somebody may have paused it, or let it go on, by hand.
            paused = pooled.paused or pooled.cgroup.is_frozen()
            thaw = paused and pooled.cgroup.can_freeze()
            if paused and not thaw:
                self._engine.unpause(str(pooled.id))
                pooled.paused_by_engine = False
        except NanoGridError as error:
            log.warning("container %s is not used again: %s", pooled.name, error)
            return None
        pooled.paused = False
        return self._leased(pooled, grant.start, thaw=thaw)

    def _leased(self, pooled: Pooled, start: StartKind, *, thaw: bool) -> LeasedContainer:
        assert pooled.slot is not None
        return LeasedContainer(str(pooled.id), pooled.name, start, pooled.cgroup, pooled.slot.path, thaw)

    def _discard_attempt(self, pooled: Pooled) -> None:
        """Take away the container that could not be kept warm; the record stays, for one that is launched."""
        if pooled.id is not None:
            self._engine.remove(pooled.id)
        if pooled.slot is not None:
            pooled.slot.remove()
        pooled.id, pooled.slot = None, None

    def _launch(self, pooled: Pooled) -> bool:
        """Start a container of an image without Python, for one run. False where that failed or the child is gone."""
        self._run_folder = RunFolder(self._starter.slot_path(pooled))
        self._line.send({"launch": {"run_dir": str(self._run_folder.path)}})
        message = self._line.receive()
        if message is None:
            return False
        start = message["start"]
        options = launcher_options(
            pooled.image,
            tuple(start["command"]),
            start["env"],
            pooled.limits,
            self._starter.settings,
            run_dir=str(self._run_folder.path),
            code_dir=start["code_dir"],
            labels=self._starter.labels(pooled),
        )
        pooled.name = self._starter.name_of(pooled)
        try:
            pooled.id = self._engine.create(pooled.name, options)
            pid = self._engine.start(pooled.id)
        except NanoGridError as error:
            self._line.send({"error": error_to_json(error)})
            return False
        pooled.cgroup = cgroup.locate(pooled.id, pid, self._starter.settings)
        self._stock.move(pooled, State.LEASED)
        self._line.send({"container": LeasedContainer(pooled.id, pooled.name, StartKind.COLD, pooled.cgroup).to_json()})
        return True

    def _keep(self, pooled: Pooled) -> None:
        """The run is over: wait until its container is clean, and put it back."""
        pooled.runs += 1
        self._stock.move(pooled, State.SETTLING)
        # From here on the function's next request finds it, also one that the same child sends at once.
        self._line.send({"kept": True})
        assert pooled.link is not None
        try:
            message = pooled.link.receive(SETTLE_S)
        except ContainerLostError as error:
            log.warning("container %s is not used again: %s", pooled.name, error)
            return
        if not isinstance(message, Ready):
            reason = f"{message.word}: {message.reason}" if isinstance(message, Unfit) else f"it said {message}"
            log.warning("container %s is not used again: %s", pooled.name, reason)
            return
        pooled.measure()
        pooled.request_id = None
        self._pooled = None
        self._stock.move(pooled, State.IDLE)

    def _destroy(self, pooled: Pooled) -> End:
        if pooled.id is None:
            return End(running=False, exit_code=-1, oom_killed=False)
        end = self._engine.end_of(pooled.id)
        self._remove()
        return end

    def _remove(self) -> None:
        """Remove the container. A run folder stays until the child has read what is in it."""
        if self._pooled is not None:
            remove(self._pooled, self._engine, self._stock)
            self._pooled = None
