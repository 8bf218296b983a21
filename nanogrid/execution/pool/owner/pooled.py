"""One container of the pool: what is known of it, and how it is shown."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from nanogrid.execution.container.cgroup import Cgroup
from nanogrid.execution.container.hardening import MIB, Confinement
from nanogrid.execution.container.link import Link
from nanogrid.execution.container.slot import Slot
from nanogrid.execution.pool.owner import policy
from nanogrid.execution.pool.owner.policy import Held, Kind
from nanogrid.execution.pool.retained import Hand
from nanogrid.execution.pool.states import State


@dataclass
class Pooled:
    """One container. Only `Stock` changes its state; the rest belongs to the thread that has it in hand."""

    number: int
    kind: Kind
    image: str
    limits: Confinement
    since: float
    state: State = State.STARTING
    key: str | None = None
    function_id: str | None = None
    request_id: str | None = None
    used_mb: int = 0
    promised_mb: int = 0
    """The memory limit of the request that has it; the container's own limit follows a moment later."""
    runs: int = 0
    paused: bool = False
    paused_by_engine: bool = False
    """The engine says "paused" from then on; freezing and thawing by the cgroup go unnoticed by it."""
    name: str = ""
    id: str | None = None
    link: Link | None = None
    slot: Slot | None = None
    hand: Hand | None = None
    """What is shared with the child that has it, where that may keep it for its next run."""
    rested_since: float | None = None
    """Since when it had rested in a hand before it came back; until it is idle."""
    cgroup: Cgroup = field(default_factory=lambda: Cgroup(None, None))
    thaws_by_cgroup: bool = False
    made_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.seen = self.held()
        """What the policy sees: made anew with every move, not for every request."""

    def held(self) -> Held:
        """What the policy is to see."""
        memory_mb = self.promised_mb if self.state in policy.IN_USE else self.used_mb
        return Held(self.number, self.state, self.kind, self.key, self.function_id, memory_mb, self.since)

    def resting_since(self) -> float | None:
        """Since when it rests in a child's hand; None where it does not."""
        hand = self.hand
        return None if hand is None or self.state is not State.LEASED else hand.resting_since()

    def measure(self) -> None:
        """Note what the container uses now."""
        used_bytes = self.cgroup.memory_bytes()
        self.used_mb = self.limits.memory_mb if used_bytes is None else -(-used_bytes // MIB)
