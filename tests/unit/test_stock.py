"""The stock of containers and its queue of requests, under threads, with records that have no container."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from nanogrid.errors import PoolExhaustedError
from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.pool.owner import stock
from nanogrid.execution.pool.owner.policy import Bounds, Kind, Wish
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.stock import Grant, Stock
from nanogrid.execution.pool.retained import Hand, Slate, Token
from nanogrid.execution.pool.states import IllegalMoveError, State
from nanogrid.result import StartKind
from tests.support.services import wait_until

PYTHON = Kind("python", "none")
LIMITS = Confinement(100, 1.0, "none")
LONG_S = 30.0


def new_hand() -> Hand:
    """What a child and an owner share."""
    descriptor = Slate.new()
    try:
        return Hand(Token(), Slate(descriptor))
    finally:
        os.close(descriptor)


def rest_in(hand: Hand) -> float:
    """The child's run is over, and it keeps the container: when that was."""
    hand.slate.end()
    hand.token.put()
    return hand.slate.since


class Desk:
    """A stock, requests that wait for it in threads of their own, and what it evicted."""

    def __init__(self, bounds: Bounds, requests: ThreadPoolExecutor) -> None:
        self.evicted: list[Pooled] = []
        self.returned: list[Pooled] = []
        self.stock = Stock(bounds, self._note, self._clean)
        self._requests = requests

    def _note(self, evicted: Sequence[Pooled]) -> None:
        # Whoever removes containers looks at the stock and waits for locks of its own: it must not be called under ours.
        assert self.stock.all() is not None
        self.evicted += evicted

    def _clean(self, pooled: Pooled) -> None:
        """What comes back from a hand is clean at once."""
        assert self.stock.all() is not None
        self.returned.append(pooled)
        self.stock.move(pooled, State.IDLE)

    def acquire(
        self,
        key: str = "code",
        *,
        function_id: str | None = None,
        memory_mb: int = 100,
        request_id: str = "",
        wait_s: float = 0.0,
        still_wanted: Callable[[], bool] = lambda: True,
        hand: Hand | None = None,
    ) -> Grant:
        """A container for a request of this code."""
        return self.stock.acquire(
            Wish(PYTHON, key, function_id or f"function of {key}", memory_mb),
            image="image",
            limits=Confinement(memory_mb, 1.0, "none"),
            request_id=request_id or f"request of {key}",
            wait_s=wait_s,
            still_wanted=still_wanted,
            hand=hand,
        )

    def ask(self, key: str = "code", *, wait_s: float = LONG_S, memory_mb: int = 100) -> Future[Grant]:
        """The same from another thread; returns once the request waits or was served."""
        before = self.stock.waiting()
        asked = self._requests.submit(self.acquire, key, wait_s=wait_s, memory_mb=memory_mb)
        wait_until(lambda: asked.done() or self.stock.waiting() > before, "the request is in the queue")
        return asked

    def use(self, key: str = "code", **fields: int) -> Pooled:
        """A container that is running a request of this code."""
        pooled = self.acquire(key, **fields).pooled  # type: ignore[arg-type]
        if pooled.state is State.STARTING:
            self.stock.move(pooled, State.LEASED)
        return pooled

    def rest(self, key: str = "code", used_mb: int = 10) -> Pooled:
        """A container that has run this code and waits for the next request."""
        pooled = self.use(key)
        self.give_back(pooled, used_mb)
        return pooled

    def give_back(self, pooled: Pooled, used_mb: int = 10) -> None:
        """The run is over, and its container is clean again."""
        self.stock.move(pooled, State.CLEANING)
        pooled.used_mb = used_mb
        self.stock.move(pooled, State.IDLE)

    def use_in_hand(self, key: str = "code", **fields: int) -> tuple[Pooled, Hand]:
        """A container that is running a request of a child that may keep it."""
        hand = new_hand()
        pooled = self.acquire(key, hand=hand, **fields).pooled  # type: ignore[arg-type]
        if pooled.state is State.STARTING:
            self.stock.move(pooled, State.LEASED)
        return pooled, hand

    def prewarm(self) -> Pooled:
        """A container that nobody asked for, ready."""
        pooled = self.stock.add(PYTHON, "image", LIMITS)
        assert pooled is not None
        self.stock.move(pooled, State.PREWARMED)
        return pooled


@pytest.fixture
def open_desk() -> Iterator[Callable[..., Desk]]:
    """Makes desks; at the end nobody waits at one any more."""
    desks: list[Desk] = []
    with ThreadPoolExecutor(16) as requests:

        def make(containers: int = 10, memory_mb: int = 10_000, of_one_function: int = 0) -> Desk:
            desks.append(Desk(Bounds(containers, memory_mb, of_one_function), requests))
            return desks[-1]

        yield make
        for desk in desks:
            desk.stock.close()


# -- what is given out


def test_the_first_request_starts_a_container(open_desk: Callable[..., Desk]) -> None:
    """A cold grant is a record that is starting and says for whom."""
    grant = open_desk().acquire()
    assert grant.start is StartKind.COLD
    assert grant.pooled.state is State.STARTING
    told = (grant.pooled.key, grant.pooled.function_id, grant.pooled.request_id, grant.pooled.image)
    assert told == ("code", "function of code", "request of code", "image")


def test_an_idle_container_is_a_warm_start(open_desk: Callable[..., Desk]) -> None:
    """It is leased from the moment it is granted, to the new request."""
    desk = open_desk()
    pooled = desk.rest()
    grant = desk.acquire(request_id="the next one")
    assert grant == Grant(pooled, StartKind.WARM)
    assert (pooled.state, pooled.request_id) == (State.LEASED, "the next one")


def test_a_prewarmed_container_becomes_the_functions_own(open_desk: Callable[..., Desk]) -> None:
    """From then on it counts as one of that code and is given to no other."""
    desk = open_desk()
    pooled = desk.prewarm()
    assert desk.acquire("a") == Grant(pooled, StartKind.PREWARMED)
    desk.give_back(pooled)
    assert desk.acquire("b").start is StartKind.COLD
    assert desk.acquire("a") == Grant(pooled, StartKind.WARM)


def test_no_container_is_given_to_two(open_desk: Callable[..., Desk]) -> None:
    """However many threads ask at once: each container is in one hand at a time, and the bound is never passed."""
    desk = open_desk(containers=3)
    in_use: dict[int, int] = {}
    most = 0
    guard = threading.Lock()

    def run(number: int) -> None:
        nonlocal most
        for turn in range(40):
            pooled = desk.use(f"code{(number + turn) % 4}", wait_s=int(LONG_S))
            with guard:
                in_use[pooled.number] = in_use.get(pooled.number, 0) + 1
                assert in_use[pooled.number] == 1
                alive = sum(one.state is not State.ENDING for one in desk.stock.all())
                most = max(most, alive)
            with guard:
                in_use[pooled.number] -= 1
            desk.give_back(pooled)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(run, number) for number in range(8)]:
            done.result()
    assert most == 3
    assert not desk.stock.is_busy()
    assert all(pooled.state is State.ENDING for pooled in desk.evicted)


# -- who waits


def test_first_come_first_served(open_desk: Callable[..., Desk]) -> None:
    """Containers that come free go to those who wait in the order in which they came."""
    desk = open_desk(containers=1)
    pooled = desk.use("a")
    waiting = [desk.ask(key) for key in ("b", "a", "c")]
    for position in range(3):
        assert [asked.done() for asked in waiting] == [number < position for number in range(3)]
        desk.give_back(pooled)
        pooled = waiting[position].result(LONG_S).pooled
        if pooled.state is State.STARTING:
            desk.stock.move(pooled, State.LEASED)
    assert desk.stock.waiting() == 0


def test_the_deadline_ends_the_wait_with_the_reason(open_desk: Callable[..., Desk]) -> None:
    """The sentence says how long, what is in use and what there may be; the request does not stay in the queue."""
    desk = open_desk(containers=1, memory_mb=500)
    desk.use("a")
    began = time.monotonic()
    with pytest.raises(PoolExhaustedError) as raised:
        desk.acquire("b", wait_s=0.05)
    assert 0.05 <= time.monotonic() - began < 10
    assert str(raised.value) == (
        "no container came free within 0.05 s: 1 containers with 100 MiB are in use, and the pool may have 1 with 500 MiB"
    )
    assert raised.value.retryable
    assert desk.stock.waiting() == 0


def test_nobody_waits_for_a_child_that_is_gone(open_desk: Callable[..., Desk]) -> None:
    """A request that nobody wants any more leaves the queue long before its deadline."""
    desk = open_desk(containers=1)
    desk.use("a")
    with pytest.raises(PoolExhaustedError):
        desk.acquire("b", wait_s=600, still_wanted=lambda: False)
    assert desk.stock.waiting() == 0


def test_who_waits_for_room_is_not_overtaken(open_desk: Callable[..., Desk]) -> None:
    """A large request gets its turn although small ones that would fit keep coming."""
    desk = open_desk(memory_mb=300)
    first = desk.use("a", memory_mb=200)
    large = desk.ask("large", memory_mb=200)
    small = desk.ask("small", memory_mb=50)
    assert (large.done(), small.done()) == (False, False)
    desk.give_back(first)
    assert large.result(LONG_S).start is small.result(LONG_S).start is StartKind.COLD


def test_who_gives_up_makes_way(open_desk: Callable[..., Desk]) -> None:
    """Those who waited behind a large request are served as soon as its deadline has passed."""
    desk = open_desk(memory_mb=300)
    desk.use("a", memory_mb=200)
    large = desk.ask("large", memory_mb=200, wait_s=0.2)
    small = desk.ask("small", memory_mb=50)
    assert isinstance(large.exception(LONG_S), PoolExhaustedError)
    wait_until(small.done, "the small request has its container", 5)


def test_a_function_at_its_cap_holds_up_nobody_else(open_desk: Callable[..., Desk]) -> None:
    """Later requests of other functions are served; its own is, when its container comes back."""
    desk = open_desk(of_one_function=1)
    pooled = desk.use("a")
    capped = desk.ask("a")
    assert desk.acquire("b").start is StartKind.COLD
    assert not capped.done()
    desk.give_back(pooled)
    assert capped.result(LONG_S) == Grant(pooled, StartKind.WARM)


def test_the_cap_is_named_when_the_deadline_passes(open_desk: Callable[..., Desk]) -> None:
    """Whoever reads it can raise the setting."""
    desk = open_desk(of_one_function=1)
    desk.use("a")
    with pytest.raises(PoolExhaustedError, match="the function has 1 containers, all in use, and may have 1"):
        desk.acquire("a")


def test_a_container_that_is_being_cleaned_is_waited_for_by_one(open_desk: Callable[..., Desk]) -> None:
    """The first request waits for it, the second starts a container of its own."""
    desk = open_desk()
    pooled = desk.use("a")
    desk.stock.move(pooled, State.CLEANING)
    first = desk.ask("a")
    assert not first.done()
    assert desk.acquire("a").start is StartKind.COLD
    desk.stock.move(pooled, State.IDLE)
    assert first.result(LONG_S) == Grant(pooled, StartKind.WARM)


def test_a_container_that_could_not_be_cleaned_frees_who_waits_for_it(open_desk: Callable[..., Desk]) -> None:
    """Its place is taken by a new one."""
    desk = open_desk(containers=1)
    pooled = desk.use("a")
    desk.stock.move(pooled, State.CLEANING)
    asked = desk.ask("a")
    desk.stock.forget(pooled)
    grant = asked.result(LONG_S)
    assert grant.start is StartKind.COLD
    assert desk.stock.all() == [grant.pooled]


def test_a_container_that_is_being_paused_is_waited_for_by_one(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request gets it when the pause is over, the second starts a container of its own."""
    monkeypatch.setattr(stock, "PAUSE_WAIT_S", LONG_S)
    desk = open_desk()
    pooled = desk.rest("a")
    assert desk.stock.take(pooled, State.IDLE, State.PAUSING)
    first = desk.ask("a")
    assert not first.done()
    assert desk.acquire("a").start is StartKind.COLD
    desk.stock.move(pooled, State.IDLE)
    assert first.result(LONG_S) == Grant(pooled, StartKind.WARM)


def test_a_pause_that_does_not_end_holds_up_no_request(open_desk: Callable[..., Desk]) -> None:
    """The engine may not answer: soon the request gets another container."""
    desk = open_desk()
    assert desk.stock.take(desk.rest("a"), State.IDLE, State.PAUSING)
    assert desk.acquire("a", wait_s=LONG_S).start is StartKind.COLD


def test_a_request_takes_a_retained_container_rather_than_wait_for_a_pause(open_desk: Callable[..., Desk]) -> None:
    """It is ready at once."""
    desk = open_desk()
    idle = desk.use("a")
    pooled, hand = desk.use_in_hand("a")
    desk.give_back(idle)
    assert desk.stock.take(idle, State.IDLE, State.PAUSING)
    rest_in(hand)
    assert desk.acquire("a") == Grant(pooled, StartKind.WARM)


# -- who has to go


def test_evicted_ones_are_handed_over_outside_the_lock(open_desk: Callable[..., Desk]) -> None:
    """They are ending, still in the stock until they are forgotten, and given out no more."""
    desk = open_desk(containers=2)
    older, younger = desk.rest("a"), desk.rest("b")
    fresh = desk.acquire("c").pooled
    assert desk.evicted == [older]
    assert older.state is State.ENDING
    assert set(map(id, desk.stock.all())) == {id(older), id(younger), id(fresh)}
    desk.stock.forget(older)
    assert older not in desk.stock.all()
    assert desk.acquire("b").pooled is younger


def test_retiring_spares_what_is_in_use(open_desk: Callable[..., Desk]) -> None:
    """Containers that wait are taken out; one that was given out meanwhile, or is gone, is left alone."""
    desk = open_desk()
    idle, busy, ready = desk.rest("a"), desk.use("c"), desk.prewarm()
    desk.stock.retire([idle.number, ready.number, busy.number, 999])
    assert desk.evicted == [idle, ready]
    assert (idle.state, ready.state, busy.state) == (State.ENDING, State.ENDING, State.LEASED)
    desk.stock.retire([idle.number])
    assert desk.evicted == [idle, ready]


def test_a_resting_container_counts_with_what_it_uses(open_desk: Callable[..., Desk]) -> None:
    """Many idle ones fit where only one can run at its limit."""
    desk = open_desk(memory_mb=150)
    for number in range(5):
        desk.rest(f"code{number}", used_mb=10)
    assert (len(desk.stock.all()), desk.evicted) == (5, [])
    desk.rest("code5", used_mb=60)
    desk.use("code0")
    assert [pooled.key for pooled in desk.evicted] == ["code1", "code2", "code3", "code4", "code5"]


# -- moves


@pytest.mark.parametrize(
    ("moves", "wrong"),
    [
        ([], State.IDLE),
        ([State.LEASED], State.IDLE),
        ([State.LEASED], State.PREWARMED),
        ([State.PREWARMED], State.IDLE),
        ([State.LEASED, State.CLEANING], State.LEASED),
        ([State.LEASED, State.CLEANING], State.PREWARMED),
        ([State.LEASED, State.CLEANING], State.PAUSING),
        ([State.LEASED], State.PAUSING),
        ([State.PREWARMED], State.CLEANING),
        ([State.PREWARMED, State.PAUSING], State.LEASED),
        ([State.LEASED, State.ENDING], State.IDLE),
        ([State.ENDING], State.ENDING),
    ],
)
def test_illegal_moves_are_bugs(open_desk: Callable[..., Desk], moves: list[State], wrong: State) -> None:
    """They raise and change nothing, and the stock can be used on."""
    desk = open_desk()
    pooled = desk.stock.add(PYTHON, "image", LIMITS)
    assert pooled is not None
    for state in moves:
        desk.stock.move(pooled, state)
    before = pooled.state
    with pytest.raises(IllegalMoveError, match=f"from {before.value} to {wrong.value}"):
        desk.stock.move(pooled, wrong)
    assert pooled.state is before
    assert desk.acquire("other").pooled is not None


def test_whoever_is_faster_takes_it(open_desk: Callable[..., Desk]) -> None:
    """A container that a request was given meanwhile cannot be taken for a pause."""
    desk = open_desk()
    pooled = desk.rest()
    assert desk.stock.take(pooled, State.IDLE, State.PAUSING)
    assert pooled.held().state is State.PAUSING
    desk.stock.move(pooled, State.IDLE)
    desk.acquire()
    assert not desk.stock.take(pooled, State.IDLE, State.PAUSING)
    assert pooled.state is State.LEASED


def test_a_pause_makes_no_container_younger(open_desk: Callable[..., Desk]) -> None:
    """Neither the order of eviction nor the idle timeout starts anew; the next run makes it younger."""
    desk = open_desk()
    pooled = desk.rest()
    idle_since = pooled.since
    assert desk.stock.take(pooled, State.IDLE, State.PAUSING)
    pooled.paused = True
    desk.stock.move(pooled, State.IDLE)
    assert pooled.since == idle_since
    desk.acquire()
    pooled.paused = False
    desk.give_back(pooled)
    assert pooled.since > idle_since


def test_whoever_prewarms_is_told_of_a_prewarmed_container_that_goes(open_desk: Callable[..., Desk]) -> None:
    """Its place is to be filled again, whether it was given a function or evicted."""
    desk = open_desk(containers=2)
    desk.prewarm()
    desk.stock.wanting.clear()
    desk.use("a")
    assert desk.stock.wanting.is_set()
    desk.prewarm()
    desk.stock.wanting.clear()
    desk.acquire("b")
    assert desk.stock.wanting.is_set()


def test_whoever_prewarms_is_told_of_room(open_desk: Callable[..., Desk]) -> None:
    """A container that ends leaves room, and one that comes to rest counts with less memory than before."""
    desk = open_desk()
    pooled = desk.use("a")
    desk.stock.wanting.clear()
    desk.give_back(pooled)
    assert desk.stock.wanting.is_set()
    desk.stock.wanting.clear()
    desk.stock.retire([pooled.number])
    assert desk.stock.wanting.is_set()


# -- the end


def test_closing_wakes_everybody(open_desk: Callable[..., Desk]) -> None:
    """All who wait are told at once that the worker stops, and nobody is served any more."""
    desk = open_desk(containers=1)
    pooled = desk.use("a")
    waiting = [desk.ask(key) for key in ("b", "c", "d")]
    desk.stock.close()
    for asked in waiting:
        assert "the worker is stopping" in str(asked.exception(5))
    with pytest.raises(PoolExhaustedError, match="the worker is stopping"):
        desk.acquire("a", wait_s=LONG_S)
    assert desk.stock.add(PYTHON, "image", LIMITS) is None
    desk.give_back(pooled)
    assert desk.stock.waiting() == 0


def test_the_stock_tells_its_counts(open_desk: Callable[..., Desk]) -> None:
    """Its text holds the containers by state, and how many requests wait."""
    desk = open_desk(containers=2)
    desk.use("a")
    desk.use("b")
    desk.ask("c")
    assert repr(desk.stock) == "<Stock {'leased': 2} waiting=1>"
    assert desk.stock.is_busy()


# -- what rests in hands


def test_what_rests_in_a_hand_serves_the_next_request_of_its_code(open_desk: Callable[..., Desk]) -> None:
    """Another child's request takes it back, counts its runs, and has it warm; whoever had it finds no token."""
    desk = open_desk()
    pooled, hand = desk.use_in_hand()
    hand.slate.end()
    rest_in(hand)
    grant = desk.acquire(request_id="another's", hand=(other := new_hand()))
    assert grant == Grant(pooled, StartKind.WARM)
    assert (pooled.runs, pooled.hand, pooled.request_id) == (2, other, "another's")
    assert not hand.token.take()
    assert not desk.stock.claim(pooled, hand)


def test_a_run_in_hand_is_nobody_elses(open_desk: Callable[..., Desk]) -> None:
    """Another request gets a container of its own, and the one in hand is not called for."""
    desk = open_desk()
    pooled, hand = desk.use_in_hand()
    rest_in(hand)
    assert hand.token.take()
    assert desk.acquire().start is StartKind.COLD
    assert not hand.slate.wanted
    assert pooled.state is State.LEASED


def test_who_waits_for_room_has_it_from_a_hand(open_desk: Callable[..., Desk]) -> None:
    """What rests goes at once."""
    desk = open_desk(containers=1)
    pooled, hand = desk.use_in_hand("a")
    rest_in(hand)
    assert desk.acquire("b").start is StartKind.COLD
    assert desk.evicted == [pooled]
    assert pooled.state is State.ENDING


def test_who_waits_is_not_starved_by_a_child_that_runs_on(open_desk: Callable[..., Desk]) -> None:
    """The child is told before its token is looked for: when its run is over it sees that, or the owner finds the token."""
    desk = open_desk(containers=1)
    pooled, hand = desk.use_in_hand("a")
    waiting = desk.ask("b")
    assert hand.slate.wanted
    rest_in(hand)
    assert hand.token.take()  # as the child does that has seen that it is wanted
    assert desk.stock.claim(pooled, hand)
    desk.give_back(pooled)
    assert waiting.result(LONG_S).start is StartKind.COLD
    assert desk.evicted == [pooled]


def test_a_new_lease_is_not_wanted_back(open_desk: Callable[..., Desk]) -> None:
    """What was wanted of the lease before on the same connection is over, and so are its runs."""
    desk = open_desk()
    hand = new_hand()
    hand.slate.wanted = True
    hand.slate.end()
    pooled = desk.acquire(hand=hand, request_id="mine").pooled
    assert (hand.slate.wanted, hand.slate.runs, hand.slate.request_id) == (False, 0, "mine")
    assert pooled.hand is hand


def test_a_functions_cap_calls_in_its_own_alone(open_desk: Callable[..., Desk]) -> None:
    """A function with new code takes the place of its old code; what other functions have in hand stays there."""
    desk = open_desk(of_one_function=1)
    old, hand = desk.use_in_hand("old", function_id="f")  # type: ignore[arg-type]
    _, others = desk.use_in_hand("other", function_id="g")  # type: ignore[arg-type]
    rest_in(hand)
    rest_in(others)
    assert desk.acquire("new", function_id="f").start is StartKind.COLD
    assert desk.evicted == [old]
    assert others.token.lies()


def test_a_rest_in_hand_makes_no_container_younger(open_desk: Callable[..., Desk]) -> None:
    """Idle time counts from the end of the last run, in whoever's hand."""
    desk = open_desk()
    pooled, hand = desk.use_in_hand()
    since = rest_in(hand)
    desk.stock.take_back([pooled])
    assert (pooled.state, pooled.since, pooled.rested_since) == (State.IDLE, since, None)
    assert desk.returned == [pooled]


def test_what_is_called_in_comes_back_after_its_run(open_desk: Callable[..., Desk]) -> None:
    """At rest it comes at once; running it is told."""
    desk = open_desk()
    resting, hand = desk.use_in_hand("a")
    running, other = desk.use_in_hand("b")
    rest_in(hand)
    desk.stock.call_in(lambda pooled: pooled in (resting, running))
    assert (resting.state, running.state) == (State.IDLE, State.LEASED)
    assert other.slate.wanted


def test_people_are_shown_what_is_in_hands(open_desk: Callable[..., Desk]) -> None:
    """In use while a run is under way, with the request that it is of; else without one, and with every run counted."""
    desk = open_desk()
    pooled, hand = desk.use_in_hand()
    hand.slate.begin("the second")
    (view,) = desk.stock.views()
    assert (view.pooled, view.state, view.request_id, view.runs) == (pooled, State.LEASED, "the second", 0)
    assert desk.stock.is_busy()
    since = rest_in(hand)
    (view,) = desk.stock.views()
    assert (view.state, view.request_id, view.runs, view.since) == (State.CLEANING, None, 1, since)
    assert not desk.stock.is_busy()


def test_runs_in_a_hand_are_counted_as_warm_starts(open_desk: Callable[..., Desk]) -> None:
    """As soon as they are over, each once, and no fewer when the container comes back. The first was counted when it was asked for."""
    desk = open_desk()
    pooled, hand = desk.use_in_hand()
    for _ in range(3):
        hand.slate.end()
    assert desk.stock.starts()[StartKind.WARM] == 2
    hand.token.put()
    desk.stock.take_back([pooled])
    assert desk.stock.starts()[StartKind.WARM] == 2
