"""The record of one container of the pool.

Runs in: threads of the worker's main process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from nanogrid.execution.container.cgroup import Cgroup
from nanogrid.execution.container.hardening import MIB, Confinement
from nanogrid.execution.container.link import Link
from nanogrid.execution.container.slot import Slot
from nanogrid.execution.pool.owner import policy
from nanogrid.execution.pool.owner.policy import ContainerFacts, ContainerKind
from nanogrid.execution.pool.retained import Retention
from nanogrid.execution.pool.states import State, check


@dataclass
class Pooled:
    """One container. Only the stock changes its state; the other fields belong to the thread that works on it."""

    number: int
    kind: ContainerKind
    image: str
    limits: Confinement
    since: float
    state: State = State.STARTING
    key: str | None = None
    function_id: str | None = None
    request_id: str | None = None
    used_mb: int = 0
    promised_mb: int = 0
    """The memory limit of the request that has the container. The container's own limit is set a moment later."""
    runs: int = 0
    paused: bool = False
    paused_by_engine: bool = False
    """The engine reports "paused" from its first pause on: it does not notice that the cgroup is frozen and thawed."""
    name: str = ""
    id: str | None = None
    link: Link | None = None
    slot: Slot | None = None
    retention: Retention | None = None
    """Shared with the child that has the container, if that child may retain it for its next run."""
    rested_since: float | None = None
    """When the last run in a child that retained the container ended. Set while it is cleaned after it was taken back."""
    cgroup: Cgroup = field(default_factory=lambda: Cgroup(None, None))
    thaws_by_cgroup: bool = False
    made_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.facts = self.current_facts()
        """What the policy sees. Updated with every move, not for every request."""

    def current_facts(self) -> ContainerFacts:
        """The record as the policy sees it."""
        memory_mb = self.promised_mb if self.state in policy.IN_USE else self.used_mb
        return ContainerFacts(self.number, self.state, self.kind, self.key, self.function_id, memory_mb, self.since)

    def enter(self, state: State) -> None:
        """Change the state. Called under the stock's lock. Raises IllegalMoveError, and changes nothing then."""
        check(self.state, state)
        # A pause does not make a container younger, and neither does the time for which a child retained it.
        if state is State.ENDING or State.PAUSING not in (self.state, state):
            self.since = time.monotonic()
        if state is State.IDLE and self.rested_since is not None:
            self.since, self.rested_since = self.rested_since, None
        self.state = state
        self.facts = self.current_facts()

    def resting_since(self) -> float | None:
        """Since when a child retains the container at rest; None if no child does."""
        retention = self.retention
        return None if retention is None or self.state is not State.LEASED else retention.resting_since()

    def measure(self) -> None:
        """Note how much memory the container uses now."""
        used_bytes = self.cgroup.memory_bytes()
        self.used_mb = self.limits.memory_mb if used_bytes is None else -(-used_bytes // MIB)
