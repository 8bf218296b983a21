"""Every container of this worker, and the requests that wait for one.

The rule: all mutable state is here, behind one lock; under it only plain data is looked at, by `policy`, and tokens are
reached for, which waits for nobody. Whoever is given a container, or has to remove one, does so after the lock is released.
Thread-safe.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nanogrid.errors import PoolExhaustedError
from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.pool.owner import policy
from nanogrid.execution.pool.owner.policy import Bounds, Create, Decision, Held, Kind, Reuse, Specialise, Wait, Wish
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.tally import GIVEN_UP, GRANTED, Counted, Eviction, Tally
from nanogrid.execution.pool.owner.view import View, view
from nanogrid.execution.pool.retained import Hand
from nanogrid.execution.pool.states import State, check
from nanogrid.result import StartKind

LOOK_EVERY_S = 0.5
PAUSE_WAIT_S = 0.5
"""How long a request waits for its own container to be paused. It takes milliseconds, unless the engine hangs."""


@dataclass(frozen=True)
class Grant:
    """A container for one request. COLD: it has yet to be started."""

    pooled: Pooled
    start: StartKind


@dataclass
class _Changes:
    """What has to be done after the lock is released: remove these, have those cleaned."""

    evicted: list[Pooled] = field(default_factory=list)
    returned: list[Pooled] = field(default_factory=list)


class _Waiter:
    def __init__(self, wish: Wish, image: str, limits: Confinement, request_id: str, hand: Hand | None) -> None:
        self.wish, self.image, self.limits, self.request_id, self.hand = wish, image, limits, request_id, hand
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

    Both are called outside the lock: `evicted` with the containers that have to be removed, `returned` with one that was
    taken back from a child's hand and is settling.
    """

    def __init__(
        self, bounds: Bounds, evicted: Callable[[Sequence[Pooled]], None], returned: Callable[[Pooled], None]
    ) -> None:
        self.bounds = bounds
        self.tally = Tally()
        self._evicted = evicted
        self._returned = returned
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

    def starts(self) -> dict[StartKind, int]:
        """How many runs have been given a container, by kind. One in a hand is counted when it is over."""
        with self._lock:
            found = {kind: self.tally.of(Counted.STARTS, kind.value) for kind in StartKind}
            found[StartKind.WARM] += sum(pooled.hand.runs_unasked() for pooled in self._pooled.values() if pooled.hand)
            return found

    def waiting(self) -> int:
        """How many requests wait, with all done that could be done for them: not in the middle of a decision."""
        with self._lock:
            return len(self._waiters)

    def is_busy(self) -> bool:
        """Whether any container is in use."""
        return any(pooled.state is State.LEASED and pooled.resting_since() is None for pooled in self.all())

    def views(self) -> list[View]:
        """Every container as it is right now."""
        with self._lock:
            return [view(pooled) for pooled in self._pooled.values()]

    def acquire(
        self,
        wish: Wish,
        *,
        image: str,
        limits: Confinement,
        request_id: str,
        wait_s: float,
        still_wanted: Callable[[], bool] = lambda: True,
        hand: Hand | None = None,
    ) -> Grant:
        """A container for a request, as soon as its turn has come.

        With `hand` the child may keep it. Raises PoolExhaustedError when none came free within `wait_s`, or nobody wants it
        any more.
        """
        waiter = _Waiter(wish, image, limits, request_id, hand)
        with self._lock:
            if self._closed:
                raise PoolExhaustedError("the worker is stopping: its containers are not given out any more")
            self._waiters.append(waiter)
            changes = self._serve()
            grant = waiter.grant
            if grant is None:
                waiter.granted = granted = threading.Event()
        self._after(changes)
        if grant is not None:
            return grant
        began = time.monotonic()
        deadline = began + wait_s
        while not granted.wait(min(LOOK_EVERY_S, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline or not still_wanted():
                break
            if waiter.wish.waits_for_pause and time.monotonic() >= began + PAUSE_WAIT_S:
                with self._lock:
                    waiter.wish = replace(waiter.wish, waits_for_pause=False)
                    changes = self._serve()
                self._after(changes)
        with self._lock:
            grant = waiter.grant
            changes = _Changes()
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                changes = self._serve()  # those whom it held up
        self._after(changes)
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
            changes = self._serve()
        self._after(changes)

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
            changes = self._serve()
        self._after(changes)

    def claim(self, pooled: Pooled, hand: Hand | None) -> bool:
        """Have a leased container back for good, whatever its child does. False where it is not this lease's any more."""
        with self._lock:
            if pooled.hand is not hand:
                return False
            self._let_go(pooled)
        return True

    def take_back(self, resting: Iterable[Pooled]) -> None:
        """Take these from the hands in which they rest. Those that run are left alone."""
        changes = _Changes()
        with self._lock:
            self._take_back(resting, changes)
        self._after(changes)

    def call_in(self, wanted: Callable[[Pooled], bool]) -> None:
        """Take these from the hands that have them: those that rest now, the others as soon as their run is over."""
        changes = _Changes()
        with self._lock:
            self._call_in(wanted, changes)
        self._after(changes)

    def retire(self, numbers: Iterable[int], reason: Eviction | None = None) -> None:
        """Take these out of the stock, those that are not in use now, and have them removed. No reason: it is not counted."""
        with self._lock:
            gone = [self._pooled[number] for number in numbers if number in self._pooled]
            gone = [pooled for pooled in gone if pooled.state in policy.EVICTABLE]
            for pooled in gone:
                self._move(pooled, State.ENDING)
        if reason is not None and gone:
            self.tally.add(Counted.EVICTIONS, reason.value, len(gone))
        self._after(_Changes(evicted=gone))

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
        if state is State.ENDING or State.PAUSING not in (pooled.state, state):
            pooled.since = time.monotonic()
        if state is State.IDLE and pooled.rested_since is not None:
            pooled.since, pooled.rested_since = pooled.rested_since, None
        if pooled.state is State.PREWARMED or state in (State.ENDING, State.IDLE):
            self.wanting.set()
        pooled.state = state
        pooled.seen = pooled.held()

    def _serve(self) -> _Changes:
        """Give out what can be given, first come first served, and call in what rests in hands for those who wait."""
        changes = _Changes()
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
            decision = self._decide(wish, changes)
            if isinstance(decision, Wait):
                waiter.reason = decision.reason
                settling[wish.kind, wish.key] = settling.get((wish.kind, wish.key), 0) + 1
                blocked = decision.for_room
                still.append(waiter)
                continue
            for number in decision.evict:
                self._move(self._pooled[number], State.ENDING)
                changes.evicted.append(self._pooled[number])
                self.tally.add(Counted.EVICTIONS, Eviction.ROOM.value)
            waiter.grant = self._grant(waiter, decision)
            waiter.wake()
        self._waiters = still
        return changes

    def _decide(self, wish: Wish, changes: _Changes) -> Decision:
        """The policy's word. What rests in hands comes back first where that could serve the wish, or make room for it."""
        decision = self._ask_policy(wish)
        if isinstance(decision, Reuse) or (isinstance(decision, Wait) and decision.for_cleaning):
            return decision
        own = (one for one in self._pooled.values() if (one.kind, one.key) == (wish.kind, wish.key))
        if any(self._take_back([pooled], changes) for pooled in own):
            return self._ask_policy(wish)
        if isinstance(decision, Wait) and self._call_in(
            lambda one: decision.for_room or one.function_id == wish.function_id, changes
        ):
            return self._ask_policy(wish)
        return decision

    def _ask_policy(self, wish: Wish) -> Decision:
        return policy.decide(wish, [pooled.seen for pooled in self._pooled.values()], self.bounds)

    def _call_in(self, wanted: Callable[[Pooled], bool], changes: _Changes) -> bool:
        """Whether any of these rested. The others come back after their run, because their children are told before."""
        called = [pooled for pooled in self._pooled.values() if pooled.hand is not None and wanted(pooled)]
        for pooled in called:
            assert pooled.hand is not None
            pooled.hand.slate.wanted = True
        return self._take_back(called, changes)

    def _take_back(self, pooleds: Iterable[Pooled], changes: _Changes) -> bool:
        """Take those back that rest in a hand right now. Whether there was one."""
        back = [pooled for pooled in pooleds if pooled.hand is not None and pooled.hand.token.take()]
        for pooled in back:
            assert pooled.hand is not None
            pooled.rested_since, pooled.request_id = pooled.hand.slate.since, None
            self._let_go(pooled)
            self._move(pooled, State.CLEANING)
        changes.returned += back
        return bool(back)

    def _let_go(self, pooled: Pooled) -> None:
        """From now on no child can take it."""
        if pooled.hand is not None:
            pooled.runs += pooled.hand.slate.runs
            self.tally.add(Counted.STARTS, StartKind.WARM.value, pooled.hand.runs_unasked())
            pooled.hand = None

    def _grant(self, waiter: _Waiter, decision: Reuse | Specialise | Create) -> Grant:
        if isinstance(decision, Create):
            pooled = self._new(waiter.wish.kind, waiter.image, waiter.limits)
            start = StartKind.COLD
        else:
            pooled = self._pooled[decision.number]
            start = StartKind.WARM if isinstance(decision, Reuse) else StartKind.PREWARMED
        pooled.key, pooled.function_id = waiter.wish.key, waiter.wish.function_id
        pooled.request_id, pooled.promised_mb = waiter.request_id, waiter.limits.memory_mb
        pooled.hand = waiter.hand
        if waiter.hand is not None:
            waiter.hand.slate.clear()
            waiter.hand.slate.begin(waiter.request_id)
        if start is StartKind.COLD:
            pooled.seen = pooled.held()
        else:
            self._move(pooled, State.LEASED)
        return Grant(pooled, start)

    def _after(self, changes: _Changes) -> None:
        if changes.evicted:
            self._evicted(changes.evicted)
        for pooled in changes.returned:
            self._returned(pooled)
