"""Who gets which container, which ones go, and what is made beforehand: pure functions over plain data.

The rule: nothing here reads a clock, takes a lock or talks to anybody. `decide` is the whole policy for a request, in the
order of its cases: reuse, wait a moment, give a prewarmed one its function, create, wait.

Sources: the pool of OpenWhisk's invoker (match, prewarmed, eviction of the oldest idle one) and httpcore's connection pool
(decide on plain data, return what is to be closed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanogrid.execution.pool.states import State


@dataclass(frozen=True)
class Kind:
    """What all containers that can stand in for each other share: the image's id, the network, whether there is a compiler cache."""

    image_id: str
    network: str
    compiles: bool = False


@dataclass(frozen=True)
class Held:
    """One container of the pool. `memory_mb` is its limit while it is in use, else what it really uses.

    `key` names the code it belongs to, None while it has none. `since` is when it came into its state (any one clock).
    """

    number: int
    state: State
    kind: Kind
    key: str | None
    function_id: str | None
    memory_mb: int
    since: float


@dataclass(frozen=True)
class Wish:
    """What a request needs. `settled_for` counts earlier requests that wait for a container of the same key.

    `waits_for_pause`: its own container may be paused first. A request that has waited for long enough does not wait for that.
    """

    kind: Kind
    key: str
    function_id: str
    memory_mb: int
    settled_for: int = 0
    waits_for_pause: bool = True


@dataclass(frozen=True)
class Bounds:
    """Most containers, memory, and containers of one function (0: as many as fit)."""

    containers: int
    memory_mb: int
    of_one_function: int = 0


@dataclass(frozen=True)
class Reuse:
    """A warm start."""

    number: int
    evict: tuple[int, ...] = ()


@dataclass(frozen=True)
class Specialise:
    """A prewarmed start: this container gets the function."""

    number: int
    evict: tuple[int, ...] = ()


@dataclass(frozen=True)
class Create:
    """A cold start, in the room that the evicted ones leave."""

    evict: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wait:
    """Not now. `reason` ends the sentence "no container came free: ...".

    `for_room`: later requests wait behind this one. `for_cleaning`: nothing has to be done, it comes in a moment.
    """

    reason: str
    for_room: bool = False
    for_cleaning: bool = False


Decision = Reuse | Specialise | Create | Wait

IN_USE = frozenset({State.STARTING, State.LEASED})
PASSING = frozenset({State.CLEANING, State.PAUSING})
"""Not in use, and neither evictable nor ready before the next state."""
EVICTABLE = frozenset({State.IDLE, State.PREWARMED})


def decide(wish: Wish, held: Sequence[Held], bounds: Bounds) -> Decision:
    """What to do for one request, now."""
    alive = [one for one in held if one.state is not State.ENDING]
    same = [one for one in alive if one.key == wish.key and one.kind == wish.kind]
    # The one used last: the others grow old and leave.
    if ready := sorted((one for one in same if one.state is State.IDLE), key=lambda one: -one.since):
        return _with_room(Reuse(ready[0].number), wish, alive, bounds, taken=ready[0])
    cleaning = sum(one.state is State.CLEANING for one in same)
    if cleaning > wish.settled_for:
        return Wait("the function's own container is being cleaned", for_cleaning=True)
    pausing = sum(one.state is State.PAUSING for one in same)
    if wish.waits_for_pause and cleaning + pausing > wish.settled_for:
        return Wait("the function's own container is being paused")
    own = [one for one in alive if one.function_id == wish.function_id]
    evict: tuple[int, ...] = ()
    if bounds.of_one_function and len(own) >= bounds.of_one_function:
        stale = sorted((one for one in own if one.state is State.IDLE), key=lambda one: one.since)
        if not stale:
            return Wait(f"the function has {len(own)} containers, all in use, and may have {bounds.of_one_function}")
        evict = (stale[0].number,)
        alive.remove(stale[0])
    prewarmed = [one for one in alive if one.state is State.PREWARMED and one.kind == wish.kind]
    if prewarmed:
        oldest = min(prewarmed, key=lambda one: one.since)
        return _with_room(Specialise(oldest.number, evict), wish, alive, bounds, taken=oldest)
    return _with_room(Create(evict), wish, alive, bounds, taken=None)


def _with_room(
    decision: Reuse | Specialise | Create, wish: Wish, alive: Sequence[Held], bounds: Bounds, *, taken: Held | None
) -> Decision:
    """The decision with what has to be evicted for it; Wait where no eviction makes enough room."""
    others = [one for one in alive if one is not taken]
    going = make_room(others, bounds, containers=1, memory_mb=wish.memory_mb)
    if going is None:
        if any(one.state in IN_USE | PASSING for one in others):
            return Wait(
                f"{len(alive)} containers with {sum(one.memory_mb for one in alive)} MiB are in use, and the pool may have "
                f"{bounds.containers} with {bounds.memory_mb} MiB",
                for_room=True,
            )
        # Nothing will ever come free: the request is larger than the pool, and runs alone.
        going = [one.number for one in others if one.state in EVICTABLE]
    return type(decision)(**{**vars(decision), "evict": (*decision.evict, *going)})


def make_room(others: Sequence[Held], bounds: Bounds, *, containers: int, memory_mb: int) -> list[int] | None:
    """Whom to evict so that so many more containers and MiB fit; None when even all idle ones would not be enough.

    The one that is idle for longest goes first; prewarmed ones only when no idle one is left.
    """
    excess = len(others) + containers - bounds.containers
    excess_mb = sum(one.memory_mb for one in others) + memory_mb - bounds.memory_mb
    candidates = sorted(
        (one for one in others if one.state in EVICTABLE), key=lambda one: (one.state is State.PREWARMED, one.since)
    )
    going = []
    for one in candidates:
        if excess <= 0 and excess_mb <= 0:
            break
        going.append(one.number)
        excess -= 1
        excess_mb -= one.memory_mb
    return going if excess <= 0 and excess_mb <= 0 else None


def expired(held: Sequence[Held], now: float, idle_timeout_s: float) -> list[int]:
    """Numbers of the containers that have waited for their function's next run for too long."""
    return [one.number for one in held if one.state is State.IDLE and now - one.since >= idle_timeout_s]


def missing(held: Sequence[Held], wanted: Sequence[tuple[Kind, int]], bounds: Bounds, memory_mb: int) -> Kind | None:
    """The kind of which a prewarmed container is to be made next; None where there are enough, or no room without eviction."""
    alive = [one for one in held if one.state is not State.ENDING]
    for kind, count in wanted:
        ready = [
            one
            for one in alive
            if one.kind == kind and one.key is None and one.state in (State.PREWARMED, State.PAUSING, State.STARTING)
        ]
        if len(ready) < count and make_room(alive, bounds, containers=1, memory_mb=memory_mb) == []:
            return kind
    return None
