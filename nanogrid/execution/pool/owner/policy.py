"""Which request gets which container, which containers are evicted, and what is prewarmed: pure functions over plain data.

The rule: nothing here reads a clock, takes a lock or does I/O. `decide` is the whole policy for a request, in the order of its
cases: reuse, wait a moment, use a prewarmed container, create, wait.

Sources: the pool of OpenWhisk's invoker (match, prewarmed, eviction of the container that is idle for longest) and httpcore's
connection pool (decide on plain data, return what must be closed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from nanogrid.execution.pool.states import State


@dataclass(frozen=True)
class ContainerKind:
    """What containers must have in common to replace each other: the image's id, the network, and the compiler cache."""

    image_id: str
    network: str
    compiles: bool = False


@dataclass(frozen=True)
class ContainerFacts:
    """One container as the policy sees it. `memory_mb` is its limit while it is in use, else what it really uses.

    `key` names the code it belongs to, None if it has none yet. `since` is when its state began, by any one clock.
    """

    number: int
    state: State
    kind: ContainerKind
    key: str | None
    function_id: str | None
    memory_mb: int
    since: float


@dataclass(frozen=True)
class Demand:
    """What a request needs. `ahead` counts earlier requests that wait for a container of the same key and kind.

    `waits_for_pause` is False after the request has waited for a pause for too long.
    """

    kind: ContainerKind
    key: str
    function_id: str
    memory_mb: int
    ahead: int = 0
    waits_for_pause: bool = True


@dataclass(frozen=True)
class Bounds:
    """The most containers, memory, and containers of one function (0: as many as fit)."""

    containers: int
    memory_mb: int
    of_one_function: int = 0


@dataclass(frozen=True)
class Reuse:
    """A warm start."""

    number: int
    evict: tuple[int, ...] = ()


@dataclass(frozen=True)
class UsePrewarmed:
    """A prewarmed start: this container gets the function."""

    number: int
    evict: tuple[int, ...] = ()


@dataclass(frozen=True)
class Create:
    """A cold start, in the room that the evicted containers leave."""

    evict: tuple[int, ...] = ()


class WaitFor(Enum):
    """What a request waits for."""

    CLEANING = "cleaning"
    """One of its own containers is being cleaned. It is idle in a moment."""
    PAUSE = "pause"
    """One of its own containers is being paused. It is idle in a moment, if the engine answers."""
    FUNCTION_LIMIT = "function limit"
    """Its function has as many containers as it may have. Other functions do not wait for this."""
    ROOM = "room"
    """The pool is full. Later requests wait behind this one."""


@dataclass(frozen=True)
class Wait:
    """No container now. `reason` ends the sentence "no container came free: ..."."""

    reason: str
    wait_for: WaitFor


Decision = Reuse | UsePrewarmed | Create | Wait

IN_USE = frozenset({State.STARTING, State.LEASED})
IN_BETWEEN = frozenset({State.CLEANING, State.PAUSING})
"""Not in use and not evictable, but soon evictable."""
EVICTABLE = frozenset({State.IDLE, State.PREWARMED})


def decide(demand: Demand, containers: Sequence[ContainerFacts], bounds: Bounds) -> Decision:
    """What to do for one request, now."""
    alive = [one for one in containers if one.state is not State.ENDING]
    same = [one for one in alive if one.key == demand.key and one.kind == demand.kind]
    # The one that was used last: the others grow old and expire.
    if ready := sorted((one for one in same if one.state is State.IDLE), key=lambda one: -one.since):
        return _with_room(Reuse(ready[0].number), demand, alive, bounds, taken=ready[0])
    if (wait := _wait_for_own(demand, same)) is not None:
        return wait
    own = [one for one in alive if one.function_id == demand.function_id]
    evict: tuple[int, ...] = ()
    if bounds.of_one_function and len(own) >= bounds.of_one_function:
        stale = sorted((one for one in own if one.state is State.IDLE), key=lambda one: one.since)
        if not stale:
            return Wait(
                f"the function has {len(own)} containers, all in use, and may have {bounds.of_one_function}",
                WaitFor.FUNCTION_LIMIT,
            )
        evict = (stale[0].number,)
        alive.remove(stale[0])
    prewarmed = [one for one in alive if one.state is State.PREWARMED and one.kind == demand.kind]
    if prewarmed:
        oldest = min(prewarmed, key=lambda one: one.since)
        return _with_room(UsePrewarmed(oldest.number, evict), demand, alive, bounds, taken=oldest)
    return _with_room(Create(evict), demand, alive, bounds, taken=None)


def _wait_for_own(demand: Demand, same: Sequence[ContainerFacts]) -> Wait | None:
    """Wait if one of the request's own containers is idle in a moment and no earlier request waits for it.

    A prewarmed container that is being paused is not waited for: it is not the request's own.
    """
    cleaning = sum(one.state is State.CLEANING for one in same)
    if cleaning > demand.ahead:
        return Wait("the function's own container is being cleaned", WaitFor.CLEANING)
    pausing = sum(one.state is State.PAUSING for one in same) if demand.waits_for_pause else 0
    if pausing and cleaning + pausing > demand.ahead:
        return Wait("the function's own container is being paused", WaitFor.PAUSE)
    return None


def _with_room(
    decision: Reuse | UsePrewarmed | Create,
    demand: Demand,
    alive: Sequence[ContainerFacts],
    bounds: Bounds,
    *,
    taken: ContainerFacts | None,
) -> Decision:
    """The decision with what must be evicted for it. Wait if no eviction makes enough room."""
    others = [one for one in alive if one is not taken]
    evicted = make_room(others, bounds, containers=1, memory_mb=demand.memory_mb)
    if evicted is None:
        if any(one.state in IN_USE | IN_BETWEEN for one in others):
            return Wait(
                f"{len(alive)} containers with {sum(one.memory_mb for one in alive)} MiB are in use, and the pool may have "
                f"{bounds.containers} with {bounds.memory_mb} MiB",
                WaitFor.ROOM,
            )
        # Nothing will ever come free: the request is larger than the pool, and runs alone.
        evicted = [one.number for one in others if one.state in EVICTABLE]
    return type(decision)(**{**vars(decision), "evict": (*decision.evict, *evicted)})


def make_room(others: Sequence[ContainerFacts], bounds: Bounds, *, containers: int, memory_mb: int) -> list[int] | None:
    """What to evict so that this many more containers and MiB fit. None if evicting all idle containers is not enough.

    The container that is idle for longest is evicted first; prewarmed ones only if no idle one is left.
    """
    excess = len(others) + containers - bounds.containers
    excess_mb = sum(one.memory_mb for one in others) + memory_mb - bounds.memory_mb
    candidates = sorted(
        (one for one in others if one.state in EVICTABLE), key=lambda one: (one.state is State.PREWARMED, one.since)
    )
    evicted = []
    for one in candidates:
        if excess <= 0 and excess_mb <= 0:
            break
        evicted.append(one.number)
        excess -= 1
        excess_mb -= one.memory_mb
    return evicted if excess <= 0 and excess_mb <= 0 else None


def expired(containers: Sequence[ContainerFacts], now: float, idle_timeout_s: float) -> list[int]:
    """Numbers of the containers that have waited for the next run of their function for too long."""
    return [one.number for one in containers if one.state is State.IDLE and now - one.since >= idle_timeout_s]


def missing(
    containers: Sequence[ContainerFacts], prewarmed: Sequence[tuple[ContainerKind, int]], bounds: Bounds, memory_mb: int
) -> ContainerKind | None:
    """The kind to prewarm next, given how many of each kind there should be.

    None if there are enough of each, or if another container does not fit without an eviction.
    """
    alive = [one for one in containers if one.state is not State.ENDING]
    for kind, count in prewarmed:
        ready = [
            one
            for one in alive
            if one.kind == kind and one.key is None and one.state in (State.PREWARMED, State.PAUSING, State.STARTING)
        ]
        if len(ready) < count and make_room(alive, bounds, containers=1, memory_mb=memory_mb) == []:
            return kind
    return None
