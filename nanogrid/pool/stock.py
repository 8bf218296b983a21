"""Every container of this worker, and the requests that wait for one.

The rule: all mutable state is here, behind one lock; under it only plain data is looked at, by `policy`. Whoever is given
a container, or has to remove one, does so after the lock is released. Thread-safe.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nanogrid.container.cgroup import Cgroup
from nanogrid.container.hardening import MIB, Confinement
from nanogrid.container.link import Link
from nanogrid.container.slot import Slot
from nanogrid.errors import PoolExhaustedError
from nanogrid.pool import policy
from nanogrid.pool.policy import Bounds, Create, Held, Kind, Reuse, Specialise, Wait, Wish
from nanogrid.pool.states import State, check
from nanogrid.pool.tally import GIVEN_UP, GRANTED, Counted, Eviction, Tally
from nanogrid.result import StartKind

LOOK_EVERY_S = 0.5


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

    def measure(self) -> None:
        """Note what the container uses now."""
        used_bytes = self.cgroup.memory_bytes()
        self.used_mb = self.limits.memory_mb if used_bytes is None else -(-used_bytes // MIB)


@dataclass(frozen=True)
class Grant:
    """A container for one request. COLD: it has yet to be started."""

    pooled: Pooled
    start: StartKind


class _Waiter:
    def __init__(self, wish: Wish, image: str, limits: Confinement, request_id: str) -> None:
        self.wish, self.image, self.limits, self.request_id = wish, image, limits, request_id
        self.granted: threading.Event | None = None
        """Made where somebody really waits."""
        self.grant: Grant | None = None
        self.reason = ""

    def wake(self) -> None:
        """Let it look."""
        if self.granted is not None:
            self.granted.set()


class Stock:
    """All mutable state: `_pooled` by number, `_waiters` in the order they came, `_closed`; guarded by `_lock`.

    `evicted` is called, outside the lock, with the containers that have to be removed.
    """

    def __init__(self, bounds: Bounds, evicted: Callable[[Sequence[Pooled]], None]) -> None:
        self.bounds = bounds
        self.tally = Tally()
        self._evicted = evicted
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pooled: dict[int, Pooled] = {}
        self._waiters: list[_Waiter] = []
        self._closed = False
        self.wanting = threading.Event()
        """Set when there may be room for a prewarmed container, or one fewer of them."""

    def __repr__(self) -> str:
        counts = Counter(pooled.state.value for pooled in self.all())
        return f"<Stock {dict(counts)} waiting={len(self._waiters)}>"

    def all(self) -> list[Pooled]:
        """Every container, also those that are ending."""
        with self._lock:
            return list(self._pooled.values())

    def all_without_lock(self) -> list[Pooled]:
        """The same in a forked child, where a thread that does not exist any more may hold the lock."""
        return list(self._pooled.values())

    def held(self) -> list[Held]:
        """The same as plain data."""
        return [pooled.held() for pooled in self.all()]

    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiters)

    def is_busy(self) -> bool:
        """Whether any container is in use."""
        return any(pooled.state is State.LEASED for pooled in self.all())

    def acquire(
        self,
        wish: Wish,
        *,
        image: str,
        limits: Confinement,
        request_id: str,
        wait_s: float,
        still_wanted: Callable[[], bool] = lambda: True,
    ) -> Grant:
        """A container for a request, as soon as its turn has come.

        Raises PoolExhaustedError when none came free within `wait_s`, or nobody wants it any more.
        """
        waiter = _Waiter(wish, image, limits, request_id)
        with self._lock:
            if self._closed:
                raise PoolExhaustedError("the worker is stopping: its containers are not given out any more")
            self._waiters.append(waiter)
            evicted = self._serve()
            grant = waiter.grant
            if grant is None:
                waiter.granted = granted = threading.Event()
        self._after(evicted)
        if grant is not None:
            return grant
        deadline = time.monotonic() + wait_s
        while not granted.wait(min(LOOK_EVERY_S, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline or not still_wanted():
                break
        with self._lock:
            grant = waiter.grant
            evicted = []
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                evicted = self._serve()  # those whom it held up
        self._after(evicted)
        self.tally.add(Counted.WAITS, GIVEN_UP if grant is None else GRANTED)
        if grant is None:
            raise PoolExhaustedError(f"no container came free within {wait_s:g} s: {waiter.reason}")
        return grant

    def add(self, kind: Kind, image: str, limits: Confinement) -> Pooled | None:
        """A new container that nobody asked for, to be started by the caller. None when the stock is closed."""
        with self._lock:
            if self._closed:
                return None
            return self._new(kind, image, limits)

    def move(self, pooled: Pooled, state: State) -> None:
        """Bring a container into another state, and serve who waits for that."""
        with self._lock:
            self._move(pooled, state)
            evicted = self._serve()
        self._after(evicted)

    def take(self, pooled: Pooled, expected: State, state: State) -> bool:
        """Move it if it is still in the state that the caller saw. False where somebody was faster."""
        with self._lock:
            if pooled.state is not expected:
                return False
            self._move(pooled, state)
        return True

    def forget(self, pooled: Pooled) -> None:
        """The container is gone."""
        with self._lock:
            if pooled.state is not State.ENDING:
                self._move(pooled, State.ENDING)
            self._pooled.pop(pooled.number, None)
            evicted = self._serve()
        self._after(evicted)

    def retire(self, numbers: Iterable[int], reason: Eviction | None = None) -> None:
        """Take these out of the stock, those that are not in use now, and have them removed. No reason: it is not counted."""
        with self._lock:
            gone = [self._pooled[number] for number in numbers if number in self._pooled]
            gone = [pooled for pooled in gone if pooled.state in policy.EVICTABLE]
            for pooled in gone:
                self._move(pooled, State.ENDING)
        if reason is not None and gone:
            self.tally.add(Counted.EVICTIONS, reason.value, len(gone))
        self._after(gone)

    def close(self) -> None:
        """Give nothing out any more, and let everybody who waits know."""
        with self._lock:
            self._closed = True
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.reason = "the worker is stopping"
            waiter.wake()

    # -- under the lock

    def _new(self, kind: Kind, image: str, limits: Confinement) -> Pooled:
        pooled = Pooled(next(self._numbers), kind, image, limits, time.monotonic(), promised_mb=limits.memory_mb)
        self._pooled[pooled.number] = pooled
        return pooled

    def _move(self, pooled: Pooled, state: State) -> None:
        check(pooled.state, state)
        # A pause does not make it younger.
        to_pause = state is State.SETTLING and pooled.state is not State.LEASED
        from_pause = pooled.state is State.SETTLING and pooled.paused
        if not (to_pause or from_pause):
            pooled.since = time.monotonic()
        if pooled.state is State.PREWARMED or state in (State.ENDING, State.IDLE):
            self.wanting.set()
        pooled.state = state
        pooled.seen = pooled.held()

    def _serve(self) -> list[Pooled]:
        """Give out what can be given, first come first served; the containers that have to go for it."""
        evicted: list[Pooled] = []
        still: list[_Waiter] = []
        settling: dict[tuple[Kind, str], int] = {}
        blocked = False
        for waiter in self._waiters:
            if blocked:
                still.append(waiter)
                continue
            wish = waiter.wish
            if settling and (earlier := settling.get((wish.kind, wish.key), 0)):
                wish = replace(wish, settled_for=earlier)
            held = [pooled.seen for pooled in self._pooled.values()]
            decision = policy.decide(wish, held, self.bounds)
            if isinstance(decision, Wait):
                waiter.reason = decision.reason
                settling[wish.kind, wish.key] = settling.get((wish.kind, wish.key), 0) + 1
                blocked = decision.for_room
                still.append(waiter)
                continue
            for number in decision.evict:
                self._move(self._pooled[number], State.ENDING)
                evicted.append(self._pooled[number])
                self.tally.add(Counted.EVICTIONS, Eviction.ROOM.value)
            waiter.grant = self._grant(waiter, decision)
            waiter.wake()
        self._waiters = still
        return evicted

    def _grant(self, waiter: _Waiter, decision: Reuse | Specialise | Create) -> Grant:
        if isinstance(decision, Create):
            pooled = self._new(waiter.wish.kind, waiter.image, waiter.limits)
            start = StartKind.COLD
        else:
            pooled = self._pooled[decision.number]
            start = StartKind.WARM if isinstance(decision, Reuse) else StartKind.PREWARMED
        pooled.key, pooled.function_id = waiter.wish.key, waiter.wish.function_id
        pooled.request_id, pooled.promised_mb = waiter.request_id, waiter.limits.memory_mb
        if start is StartKind.COLD:
            pooled.seen = pooled.held()
        else:
            self._move(pooled, State.LEASED)
        return Grant(pooled, start)

    def _after(self, evicted: Sequence[Pooled]) -> None:
        if evicted:
            self._evicted(evicted)
