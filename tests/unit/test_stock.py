"""The stock of containers and its queue of requests, with threads, on records without a real container."""

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
from nanogrid.execution.pool.owner.policy import Bounds, ContainerKind, Demand
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.owner.waiters import Grant
from nanogrid.execution.pool.retained import Retention, SharedPage, Token
from nanogrid.execution.pool.states import IllegalMoveError, State
from nanogrid.result import StartKind
from tests.support.services import wait_until

PYTHON = ContainerKind("python", "none")
LIMITS = Confinement(100, 1.0, "none")
LONG_S = 30.0


def new_retention() -> Retention:
    """What a child and an owner share for one lease."""
    descriptor = SharedPage.new()
    try:
        return Retention(Token(), SharedPage(descriptor))
    finally:
        os.close(descriptor)


def retain(retention: Retention) -> float:
    """The child's run has ended, and the child retains the container. Returns the time of that."""
    retention.page.end()
    retention.token.put()
    return retention.page.since


def is_busy(stock: Stock) -> bool:
    """Whether any container is in use."""
    return any(view.state is State.LEASED for view in stock.views())


class Desk:
    """A stock, threads with requests that wait for it, and what it has evicted and taken back."""

    def __init__(self, bounds: Bounds, requests: ThreadPoolExecutor) -> None:
        self.evicted: list[Pooled] = []
        self.taken_back: list[Pooled] = []
        self.stock = Stock(bounds, self._note, self._clean)
        self._requests = requests

    def _note(self, evicted: Sequence[Pooled]) -> None:
        # The remover reads the stock and waits for other locks: it must not be called under the stock's lock.
        assert self.stock.all() is not None
        self.evicted += evicted

    def _clean(self, pooled: Pooled) -> None:
        """A container that is taken back is clean at once."""
        assert self.stock.all() is not None
        self.taken_back.append(pooled)
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
        retention: Retention | None = None,
    ) -> Grant:
        """A container for a request of this code."""
        return self.stock.acquire(
            Demand(PYTHON, key, function_id or f"function of {key}", memory_mb),
            image="image",
            limits=Confinement(memory_mb, 1.0, "none"),
            request_id=request_id or f"request of {key}",
            wait_s=wait_s,
            still_wanted=still_wanted,
            retention=retention,
        )

    def ask(self, key: str = "code", *, wait_s: float = LONG_S, memory_mb: int = 100) -> Future[Grant]:
        """The same from another thread. Returns when the request waits or has been served."""
        before = self.stock.waiting()
        asked = self._requests.submit(self.acquire, key, wait_s=wait_s, memory_mb=memory_mb)
        wait_until(lambda: asked.done() or self.stock.waiting() > before, "the request is in the queue")
        return asked

    def use(self, key: str = "code", **fields: int) -> Pooled:
        """A container that runs a request of this code."""
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

    def use_retained(self, key: str = "code", **fields: int) -> tuple[Pooled, Retention]:
        """A container that runs a request of a child that may retain it."""
        retention = new_retention()
        pooled = self.acquire(key, retention=retention, **fields).pooled  # type: ignore[arg-type]
        if pooled.state is State.STARTING:
            self.stock.move(pooled, State.LEASED)
        return pooled, retention

    def prewarm(self) -> Pooled:
        """A prewarmed container."""
        pooled = self.stock.create(PYTHON, "image", LIMITS)
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


# -- grants


def test_the_first_request_starts_a_container(open_desk: Callable[..., Desk]) -> None:
    """A cold grant is a STARTING record with the request's key, function and id."""
    grant = open_desk().acquire()
    assert grant.start is StartKind.COLD
    assert grant.pooled.state is State.STARTING
    fields = (grant.pooled.key, grant.pooled.function_id, grant.pooled.request_id, grant.pooled.image)
    assert fields == ("code", "function of code", "request of code", "image")


def test_an_idle_container_is_a_warm_start(open_desk: Callable[..., Desk]) -> None:
    """The container is leased to the new request from the grant on."""
    desk = open_desk()
    pooled = desk.rest()
    grant = desk.acquire(request_id="the next one")
    assert grant == Grant(pooled, StartKind.WARM)
    assert (pooled.state, pooled.request_id) == (State.LEASED, "the next one")


def test_a_prewarmed_container_becomes_the_functions_own(open_desk: Callable[..., Desk]) -> None:
    """From then on it belongs to that code and serves no other."""
    desk = open_desk()
    pooled = desk.prewarm()
    assert desk.acquire("a") == Grant(pooled, StartKind.PREWARMED)
    desk.give_back(pooled)
    assert desk.acquire("b").start is StartKind.COLD
    assert desk.acquire("a") == Grant(pooled, StartKind.WARM)


def test_no_container_is_given_to_two(open_desk: Callable[..., Desk]) -> None:
    """However many threads ask at once: each container serves one request at a time, and the bound is never exceeded."""
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
    assert not is_busy(desk.stock)
    assert all(pooled.state is State.ENDING for pooled in desk.evicted)


# -- requests that wait


def test_first_come_first_served(open_desk: Callable[..., Desk]) -> None:
    """Containers that come free serve the requests in the order in which they came."""
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
    """The error names the wait, what is in use and the bounds; the request leaves the queue."""
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


def test_no_request_waits_for_a_child_that_is_gone(open_desk: Callable[..., Desk]) -> None:
    """A request that is not wanted any more leaves the queue long before its deadline."""
    desk = open_desk(containers=1)
    desk.use("a")
    with pytest.raises(PoolExhaustedError):
        desk.acquire("b", wait_s=600, still_wanted=lambda: False)
    assert desk.stock.waiting() == 0


def test_a_request_that_waits_for_room_is_not_overtaken(open_desk: Callable[..., Desk]) -> None:
    """A large request gets its turn although small ones that would fit arrive later."""
    desk = open_desk(memory_mb=300)
    first = desk.use("a", memory_mb=200)
    large = desk.ask("large", memory_mb=200)
    small = desk.ask("small", memory_mb=50)
    assert (large.done(), small.done()) == (False, False)
    desk.give_back(first)
    assert large.result(LONG_S).start is small.result(LONG_S).start is StartKind.COLD


def test_a_request_that_gives_up_unblocks_the_others(open_desk: Callable[..., Desk]) -> None:
    """The requests behind a large one are served as soon as its deadline has passed."""
    desk = open_desk(memory_mb=300)
    desk.use("a", memory_mb=200)
    large = desk.ask("large", memory_mb=200, wait_s=0.2)
    small = desk.ask("small", memory_mb=50)
    assert isinstance(large.exception(LONG_S), PoolExhaustedError)
    wait_until(small.done, "the small request has its container", 5)


def test_a_function_at_its_cap_blocks_no_other_function(open_desk: Callable[..., Desk]) -> None:
    """Later requests of other functions are served at once, its own when its container comes back."""
    desk = open_desk(of_one_function=1)
    pooled = desk.use("a")
    capped = desk.ask("a")
    assert desk.acquire("b").start is StartKind.COLD
    assert not capped.done()
    desk.give_back(pooled)
    assert capped.result(LONG_S) == Grant(pooled, StartKind.WARM)


def test_the_cap_is_named_when_the_deadline_passes(open_desk: Callable[..., Desk]) -> None:
    """So that the operator can raise the setting."""
    desk = open_desk(of_one_function=1)
    desk.use("a")
    with pytest.raises(PoolExhaustedError, match="the function has 1 containers, all in use, and may have 1"):
        desk.acquire("a")


def test_a_container_that_is_being_cleaned_is_waited_for_by_one(open_desk: Callable[..., Desk]) -> None:
    """The first request waits for it, the second gets a new container."""
    desk = open_desk()
    pooled = desk.use("a")
    desk.stock.move(pooled, State.CLEANING)
    first = desk.ask("a")
    assert not first.done()
    assert desk.acquire("a").start is StartKind.COLD
    desk.stock.move(pooled, State.IDLE)
    assert first.result(LONG_S) == Grant(pooled, StartKind.WARM)


def test_a_container_that_cannot_be_cleaned_frees_the_request_that_waits(open_desk: Callable[..., Desk]) -> None:
    """A new container takes its place."""
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
    """The first request gets it after the pause, the second gets a new container."""
    monkeypatch.setattr(stock, "PAUSE_WAIT_S", LONG_S)
    desk = open_desk()
    pooled = desk.rest("a")
    assert desk.stock.move(pooled, State.PAUSING, expected=State.IDLE)
    first = desk.ask("a")
    assert not first.done()
    assert desk.acquire("a").start is StartKind.COLD
    desk.stock.move(pooled, State.IDLE)
    assert first.result(LONG_S) == Grant(pooled, StartKind.WARM)


def test_a_pause_that_does_not_end_holds_up_no_request(open_desk: Callable[..., Desk]) -> None:
    """The engine may not answer: soon the request gets another container."""
    desk = open_desk()
    assert desk.stock.move(desk.rest("a"), State.PAUSING, expected=State.IDLE)
    assert desk.acquire("a", wait_s=LONG_S).start is StartKind.COLD


def test_a_request_takes_a_retained_container_rather_than_wait_for_a_pause(open_desk: Callable[..., Desk]) -> None:
    """It is ready at once."""
    desk = open_desk()
    idle = desk.use("a")
    pooled, retention = desk.use_retained("a")
    desk.give_back(idle)
    assert desk.stock.move(idle, State.PAUSING, expected=State.IDLE)
    retain(retention)
    assert desk.acquire("a") == Grant(pooled, StartKind.WARM)


# -- evictions


def test_evicted_ones_are_handed_over_outside_the_lock(open_desk: Callable[..., Desk]) -> None:
    """They are ENDING, stay in the stock until they are forgotten, and serve no request."""
    desk = open_desk(containers=2)
    older, younger = desk.rest("a"), desk.rest("b")
    fresh = desk.acquire("c").pooled
    assert desk.evicted == [older]
    assert older.state is State.ENDING
    assert set(map(id, desk.stock.all())) == {id(older), id(younger), id(fresh)}
    desk.stock.forget(older)
    assert older not in desk.stock.all()
    assert desk.acquire("b").pooled is younger


def test_only_unused_containers_are_evicted(open_desk: Callable[..., Desk]) -> None:
    """A container that has been leased since, or is gone, is left alone."""
    desk = open_desk()
    idle, busy, ready = desk.rest("a"), desk.use("c"), desk.prewarm()
    desk.stock.evict([idle.number, ready.number, busy.number, 999])
    assert desk.evicted == [idle, ready]
    assert (idle.state, ready.state, busy.state) == (State.ENDING, State.ENDING, State.LEASED)
    desk.stock.evict([idle.number])
    assert desk.evicted == [idle, ready]


def test_a_resting_container_counts_with_what_it_uses(open_desk: Callable[..., Desk]) -> None:
    """Many idle containers fit in the room of one that runs."""
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
    """They raise and change nothing, and the stock stays usable."""
    desk = open_desk()
    pooled = desk.stock.create(PYTHON, "image", LIMITS)
    assert pooled is not None
    for state in moves:
        desk.stock.move(pooled, state)
    before = pooled.state
    with pytest.raises(IllegalMoveError, match=f"from {before.value} to {wrong.value}"):
        desk.stock.move(pooled, wrong)
    assert pooled.state is before
    assert desk.acquire("other").pooled is not None


def test_a_request_is_faster_than_a_pause(open_desk: Callable[..., Desk]) -> None:
    """A container that a request has got meanwhile is not paused."""
    desk = open_desk()
    pooled = desk.rest()
    assert desk.stock.move(pooled, State.PAUSING, expected=State.IDLE)
    assert pooled.facts.state is State.PAUSING
    desk.stock.move(pooled, State.IDLE)
    desk.acquire()
    assert not desk.stock.move(pooled, State.PAUSING, expected=State.IDLE)
    assert pooled.state is State.LEASED


def test_a_pause_makes_no_container_younger(open_desk: Callable[..., Desk]) -> None:
    """Neither the order of eviction nor the idle timeout changes; the next run makes it younger."""
    desk = open_desk()
    pooled = desk.rest()
    idle_since = pooled.since
    assert desk.stock.move(pooled, State.PAUSING, expected=State.IDLE)
    pooled.paused = True
    desk.stock.move(pooled, State.IDLE)
    assert pooled.since == idle_since
    desk.acquire()
    pooled.paused = False
    desk.give_back(pooled)
    assert pooled.since > idle_since


def test_a_prewarmed_container_that_leaves_allows_a_refill(open_desk: Callable[..., Desk]) -> None:
    """Whether it got a function or was evicted."""
    desk = open_desk(containers=2)
    desk.prewarm()
    desk.stock.may_refill.clear()
    desk.use("a")
    assert desk.stock.may_refill.is_set()
    desk.prewarm()
    desk.stock.may_refill.clear()
    desk.acquire("b")
    assert desk.stock.may_refill.is_set()


def test_new_room_allows_a_refill(open_desk: Callable[..., Desk]) -> None:
    """A container that ends leaves room, and an idle one counts with less memory than a leased one."""
    desk = open_desk()
    pooled = desk.use("a")
    desk.stock.may_refill.clear()
    desk.give_back(pooled)
    assert desk.stock.may_refill.is_set()
    desk.stock.may_refill.clear()
    desk.stock.evict([pooled.number])
    assert desk.stock.may_refill.is_set()


# -- the end


def test_closing_turns_every_request_away(open_desk: Callable[..., Desk]) -> None:
    """The error says that the worker stops, at once, and no later request is served."""
    desk = open_desk(containers=1)
    pooled = desk.use("a")
    waiting = [desk.ask(key) for key in ("b", "c", "d")]
    desk.stock.close()
    for asked in waiting:
        assert "the worker is stopping" in str(asked.exception(5))
    with pytest.raises(PoolExhaustedError, match="the worker is stopping"):
        desk.acquire("a", wait_s=LONG_S)
    assert desk.stock.create(PYTHON, "image", LIMITS) is None
    desk.give_back(pooled)
    assert desk.stock.waiting() == 0


def test_the_stocks_text_holds_its_counts(open_desk: Callable[..., Desk]) -> None:
    """Containers by state, and how many requests wait."""
    desk = open_desk(containers=2)
    desk.use("a")
    desk.use("b")
    desk.ask("c")
    assert repr(desk.stock) == "<Stock {'leased': 2} waiting=1>"
    assert is_busy(desk.stock)


# -- retained containers


def test_a_retained_container_serves_the_next_request_of_its_code(open_desk: Callable[..., Desk]) -> None:
    """Another child's request gets it warm, with its runs counted; the first child finds no free token."""
    desk = open_desk()
    pooled, retention = desk.use_retained()
    retention.page.end()
    retain(retention)
    grant = desk.acquire(request_id="another's", retention=(other := new_retention()))
    assert grant == Grant(pooled, StartKind.WARM)
    assert (pooled.runs, pooled.retention, pooled.request_id) == (2, other, "another's")
    assert not retention.token.take()
    assert not desk.stock.end_lease(pooled, retention)


def test_a_retained_container_that_runs_serves_no_other_request(open_desk: Callable[..., Desk]) -> None:
    """Another request gets a new container, and the retained one is not asked back."""
    desk = open_desk()
    pooled, retention = desk.use_retained()
    retain(retention)
    assert retention.token.take()
    assert desk.acquire().start is StartKind.COLD
    assert not retention.page.wanted_back
    assert pooled.state is State.LEASED


def test_a_retained_container_at_rest_makes_room(open_desk: Callable[..., Desk]) -> None:
    """It is evicted at once."""
    desk = open_desk(containers=1)
    pooled, retention = desk.use_retained("a")
    retain(retention)
    assert desk.acquire("b").start is StartKind.COLD
    assert desk.evicted == [pooled]
    assert pooled.state is State.ENDING


def test_a_child_that_is_never_idle_starves_no_request(open_desk: Callable[..., Desk]) -> None:
    """The child is asked before its token is tried: after its run it sees the request, or the owner finds a free token."""
    desk = open_desk(containers=1)
    pooled, retention = desk.use_retained("a")
    waiting = desk.ask("b")
    assert retention.page.wanted_back
    retain(retention)
    assert retention.token.take()  # as the child does after it has seen `wanted_back`
    assert desk.stock.end_lease(pooled, retention)
    desk.give_back(pooled)
    assert waiting.result(LONG_S).start is StartKind.COLD
    assert desk.evicted == [pooled]


def test_a_new_lease_starts_with_a_clear_page(open_desk: Callable[..., Desk]) -> None:
    """Nothing is left of the earlier lease on the same connection."""
    desk = open_desk()
    retention = new_retention()
    retention.page.wanted_back = True
    retention.page.end()
    pooled = desk.acquire(retention=retention, request_id="mine").pooled
    assert (retention.page.wanted_back, retention.page.runs, retention.page.request_id) == (False, 0, "mine")
    assert pooled.retention is retention


def test_a_functions_cap_takes_back_only_its_own_containers(open_desk: Callable[..., Desk]) -> None:
    """New code takes the place of the function's old code; other functions' containers stay retained."""
    desk = open_desk(of_one_function=1)
    old, retention = desk.use_retained("old", function_id="f")  # type: ignore[arg-type]
    _, others = desk.use_retained("other", function_id="g")  # type: ignore[arg-type]
    retain(retention)
    retain(others)
    assert desk.acquire("new", function_id="f").start is StartKind.COLD
    assert desk.evicted == [old]
    assert others.token.is_free()


def test_being_retained_makes_no_container_younger(open_desk: Callable[..., Desk]) -> None:
    """Idle time counts from the end of the last run."""
    desk = open_desk()
    pooled, retention = desk.use_retained()
    since = retain(retention)
    desk.stock.take_back([pooled])
    assert (pooled.state, pooled.since, pooled.rested_since) == (State.IDLE, since, None)
    assert desk.taken_back == [pooled]


def test_a_container_that_runs_is_asked_back(open_desk: Callable[..., Desk]) -> None:
    """One at rest is taken back at once; the child of the other one is asked for it."""
    desk = open_desk()
    resting, retention = desk.use_retained("a")
    running, other = desk.use_retained("b")
    retain(retention)
    desk.stock.take_back([resting, running], after_run=True)
    assert (resting.state, running.state) == (State.IDLE, State.LEASED)
    assert other.page.wanted_back


def test_retained_containers_are_shown_in_their_real_state(open_desk: Callable[..., Desk]) -> None:
    """Leased during a run, with its request; cleaning afterwards, without one, and with every run counted."""
    desk = open_desk()
    pooled, retention = desk.use_retained()
    retention.page.begin("the second")
    (view,) = desk.stock.views()
    assert (view.pooled, view.state, view.request_id, view.runs) == (pooled, State.LEASED, "the second", 0)
    assert is_busy(desk.stock)
    since = retain(retention)
    (view,) = desk.stock.views()
    assert (view.state, view.request_id, view.runs, view.since) == (State.CLEANING, None, 1, since)
    assert not is_busy(desk.stock)


def test_runs_in_a_retained_container_count_as_warm_starts(open_desk: Callable[..., Desk]) -> None:
    """Each once, as soon as it has ended, also after the container is taken back. The first run counts at its grant."""
    desk = open_desk()
    pooled, retention = desk.use_retained()
    for _ in range(3):
        retention.page.end()
    assert desk.stock.starts()[StartKind.WARM] == 2
    retention.token.put()
    desk.stock.take_back([pooled])
    assert desk.stock.starts()[StartKind.WARM] == 2
