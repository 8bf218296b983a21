"""Which request gets which container, case by case on plain data, and properties of every possible pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from nanogrid.execution.pool.owner.policy import (
    EVICTABLE,
    IN_BETWEEN,
    IN_USE,
    Bounds,
    ContainerFacts,
    ContainerKind,
    Create,
    Decision,
    Demand,
    Reuse,
    UsePrewarmed,
    Wait,
    WaitFor,
    decide,
    expired,
    make_room,
    missing,
)
from nanogrid.execution.pool.states import MOVES, IllegalMoveError, State, check

PYTHON = ContainerKind("python", "none")
ONLINE = ContainerKind("python", "bridge")
CPP = ContainerKind("gcc", "none")
DEMAND = Demand(PYTHON, "code", "f", 100)
ROOMY = Bounds(100, 100_000)


def held(
    number: int,
    state: State = State.IDLE,
    kind: ContainerKind = PYTHON,
    key: str | None = "code",
    function_id: str | None = "f",
    memory_mb: int = 10,
    since: float = 0.0,
) -> ContainerFacts:
    """One container; by default an idle one of the demanded function."""
    return ContainerFacts(number, state, kind, key, function_id, memory_mb, since)


def other(number: int, state: State = State.IDLE, **fields: int | float) -> ContainerFacts:
    """One container of another function."""
    return replace(held(number, state, key=f"code{number}", function_id=f"g{number}"), **fields)  # type: ignore[arg-type]


def prewarmed(number: int, kind: ContainerKind = PYTHON, **fields: int | float) -> ContainerFacts:
    """One prewarmed container."""
    return replace(held(number, State.PREWARMED, kind, None, None), **fields)  # type: ignore[arg-type]


def reason(decision: Decision) -> str:
    """Why a request waits."""
    assert isinstance(decision, Wait), decision
    return decision.reason


# -- reuse


def test_an_empty_pool_creates() -> None:
    """A container is created and none is evicted."""
    assert decide(DEMAND, [], ROOMY) == Create()


def test_the_one_used_last_is_reused() -> None:
    """The youngest of a function's idle containers is reused, in any order: the others grow old and expire."""
    pool = [held(1, since=1), held(2, since=3), held(3, since=2)]
    assert decide(DEMAND, pool, ROOMY) == decide(DEMAND, pool[::-1], ROOMY) == Reuse(2)


def test_a_container_of_other_code_is_never_reused() -> None:
    """Not even one of the same function: its code has changed since."""
    assert decide(DEMAND, [held(1, key="code of before")], ROOMY) == Create()


def test_a_function_of_the_same_code_shares_its_containers() -> None:
    """The code counts, not the function's id."""
    assert decide(DEMAND, [held(1, function_id="g")], ROOMY) == Reuse(1)


@pytest.mark.parametrize("kind", [ONLINE, CPP])
def test_a_container_of_another_image_or_network_is_never_used(kind: ContainerKind) -> None:
    """Neither one that ran the same code, nor a prewarmed one."""
    assert decide(DEMAND, [held(1, kind=kind), prewarmed(2, kind)], ROOMY) == Create()


@pytest.mark.parametrize("state", [State.STARTING, State.LEASED, State.ENDING])
def test_a_container_that_is_not_idle_is_not_reused(state: State) -> None:
    """If the code's container is in use or is ending, the request gets a new container."""
    assert decide(DEMAND, [held(1, state)], ROOMY) == Create()


def test_an_idle_container_goes_before_a_prewarmed_one() -> None:
    """A warm start is cheaper, and keeps the prewarmed container for new code."""
    assert decide(DEMAND, [prewarmed(1, since=9), held(2)], ROOMY) == Reuse(2)


# -- wait a moment


def test_a_container_that_is_cleaned_is_waited_for() -> None:
    """It is ready within milliseconds, a new one is not. Later requests may be served meanwhile."""
    decision = decide(DEMAND, [held(1, State.CLEANING), prewarmed(2)], ROOMY)
    assert reason(decision) == "the function's own container is being cleaned"
    assert decision == Wait(reason(decision), WaitFor.CLEANING)


@pytest.mark.parametrize(("earlier", "waits"), [(0, True), (1, True), (2, False), (3, False)])
def test_only_as_many_wait_as_are_being_cleaned(earlier: int, waits: bool) -> None:
    """If two are being cleaned, the third request does not wait in vain."""
    pool = [held(1, State.CLEANING), held(2, State.CLEANING), other(3, State.CLEANING)]
    decision = decide(replace(DEMAND, ahead=earlier), pool, ROOMY)
    assert isinstance(decision, Wait if waits else Create)


def test_a_container_that_is_being_paused_is_waited_for() -> None:
    """A pause takes milliseconds, and a warm start follows. The reason names the pause."""
    decision = decide(DEMAND, [held(1, State.PAUSING), prewarmed(2)], ROOMY)
    assert decision == Wait("the function's own container is being paused", WaitFor.PAUSE)


@pytest.mark.parametrize(("earlier", "waits"), [(0, True), (1, True), (2, False)])
def test_only_as_many_wait_as_will_be_ready(earlier: int, waits: bool) -> None:
    """One container that is being cleaned and one that is being paused serve two requests."""
    pool = [held(1, State.CLEANING), held(2, State.PAUSING), other(3, State.PAUSING)]
    decision = decide(replace(DEMAND, ahead=earlier), pool, ROOMY)
    assert isinstance(decision, Wait if waits else Create)


def test_a_pause_that_takes_long_is_not_waited_for() -> None:
    """An engine that does not answer delays a pause, but no request."""
    impatient = replace(DEMAND, waits_for_pause=False)
    pool = [held(1, State.PAUSING)]
    assert decide(impatient, pool, ROOMY) == Create()
    assert decide(impatient, [*pool, prewarmed(2)], ROOMY) == UsePrewarmed(2)
    assert isinstance(decide(impatient, [held(1, State.CLEANING)], ROOMY), Wait)


def test_a_prewarmed_container_that_is_being_paused_is_not_waited_for() -> None:
    """It belongs to no function: another request may get it first."""
    assert decide(DEMAND, [replace(prewarmed(1), state=State.PAUSING)], ROOMY) == Create()


def test_another_functions_cleaning_is_not_waited_for() -> None:
    """A request waits only for its own container."""
    assert decide(DEMAND, [other(1, State.CLEANING), held(2, State.CLEANING, ONLINE)], ROOMY) == Create()
    assert decide(DEMAND, [other(1, State.PAUSING), held(2, State.PAUSING, ONLINE)], ROOMY) == Create()


# -- the cap of a function


def test_a_function_at_its_cap_waits() -> None:
    """Other requests are served meanwhile. The reason holds both numbers."""
    decision = decide(
        DEMAND, [held(1, State.LEASED), held(2, State.STARTING), other(3)], replace(ROOMY, of_one_function=2)
    )
    assert reason(decision) == "the function has 2 containers, all in use, and may have 2"
    assert isinstance(decision, Wait)
    assert decision.wait_for is WaitFor.FUNCTION_LIMIT


def test_the_cap_counts_containers_of_older_code() -> None:
    """New code gives a function no additional containers."""
    pool = [held(1, State.LEASED, key="code of before")]
    assert isinstance(decide(DEMAND, pool, replace(ROOMY, of_one_function=1)), Wait)


def test_at_its_cap_a_function_evicts_its_own_stale_container() -> None:
    """The container of older code that is idle for longest is evicted, although the pool has room."""
    pool = [held(1, key="old", since=5), held(2, key="old", since=4), held(3, State.LEASED)]
    assert decide(DEMAND, pool, replace(ROOMY, of_one_function=3)) == Create(evict=(2,))
    assert decide(DEMAND, [*pool, prewarmed(4)], replace(ROOMY, of_one_function=3)) == UsePrewarmed(4, evict=(2,))


def test_what_the_cap_evicts_makes_room_too() -> None:
    """No second container is evicted."""
    pool = [other(1, since=1), held(2, key="old", since=4)]
    assert decide(DEMAND, pool, Bounds(2, 100_000, 1)) == Create(evict=(2,))


def test_a_warm_start_is_no_new_container_for_the_cap() -> None:
    """A function at its cap reuses its own containers."""
    assert decide(DEMAND, [held(1)], replace(ROOMY, of_one_function=1)) == Reuse(1)


def test_without_a_cap_a_function_may_have_them_all() -> None:
    """0 means as many as fit."""
    assert decide(DEMAND, [held(number, State.LEASED) for number in range(50)], ROOMY) == Create()


# -- prewarmed, create, evict


def test_a_prewarmed_container_gets_the_function() -> None:
    """The oldest one."""
    assert decide(DEMAND, [prewarmed(1, since=2), prewarmed(2, since=1), other(3)], ROOMY) == UsePrewarmed(2)


def test_the_number_of_containers_is_bounded() -> None:
    """At the bound, only the container that is idle for longest is evicted."""
    pool = [other(1, since=2), other(2, since=1), other(3, State.LEASED, since=0)]
    assert decide(DEMAND, pool, Bounds(3, 100_000)) == Create(evict=(2,))
    assert decide(DEMAND, pool, Bounds(4, 100_000)) == Create()


def test_memory_is_bounded() -> None:
    """Containers are evicted, longest idle first, until the request's limit fits."""
    pool = [other(1, since=1, memory_mb=40), other(2, since=2, memory_mb=40), other(3, since=3, memory_mb=40)]
    assert decide(DEMAND, pool, Bounds(100, 220)) == Create()
    assert decide(DEMAND, pool, Bounds(100, 219)) == Create(evict=(1,))
    assert decide(DEMAND, pool, Bounds(100, 179)) == Create(evict=(1, 2))
    assert decide(DEMAND, pool, Bounds(100, 100)) == Create(evict=(1, 2, 3))


def test_prewarmed_ones_are_evicted_last() -> None:
    """However old they are: they serve every function, an idle one only its own."""
    pool = [prewarmed(1, CPP, since=0), other(2, since=9)]
    assert decide(DEMAND, pool, Bounds(2, 100_000)) == Create(evict=(2,))
    assert decide(DEMAND, pool, Bounds(1, 100_000)) == Create(evict=(2, 1))


def test_a_reused_container_counts_with_the_requests_limit() -> None:
    """It used little while it was idle, and may use its whole limit while it runs."""
    pool = [held(1, memory_mb=10), other(2, memory_mb=50)]
    assert decide(DEMAND, pool, Bounds(100, 150)) == Reuse(1)
    assert decide(DEMAND, pool, Bounds(100, 149)) == Reuse(1, evict=(2,))
    assert isinstance(decide(DEMAND, [pool[0], other(2, State.LEASED, memory_mb=50)], Bounds(100, 149)), Wait)


def test_a_prewarmed_container_takes_no_second_place() -> None:
    """It is not counted twice."""
    assert decide(DEMAND, [prewarmed(1, memory_mb=90)], Bounds(1, 100)) == UsePrewarmed(1)


def test_what_ends_takes_no_room() -> None:
    """A container that is being removed does not count."""
    pool = [other(1, State.ENDING, memory_mb=1000), other(2, State.LEASED, memory_mb=50)]
    assert decide(DEMAND, pool, Bounds(2, 150)) == Create()


# -- wait for room


@pytest.mark.parametrize("state", [State.LEASED, State.STARTING, State.CLEANING, State.PAUSING])
@pytest.mark.parametrize("bounds", [Bounds(1, 100_000), Bounds(100, 149)])
def test_if_all_are_in_use_the_request_waits(state: State, bounds: Bounds) -> None:
    """Later requests wait behind it. The reason names what is in use and the bounds."""
    decision = decide(DEMAND, [other(1, state, memory_mb=50)], bounds)
    assert reason(decision) == (
        f"1 containers with 50 MiB are in use, and the pool may have {bounds.containers} with {bounds.memory_mb} MiB"
    )
    assert decision == Wait(reason(decision), WaitFor.ROOM)


def test_nothing_is_evicted_for_a_request_that_still_cannot_start() -> None:
    """Evicting would only cost warm starts."""
    pool = [other(1, memory_mb=50), other(2, State.LEASED, memory_mb=80)]
    assert isinstance(decide(DEMAND, pool, Bounds(100, 150)), Wait)


def test_a_request_larger_than_the_pool_runs_alone() -> None:
    """It waits until nothing is in use, then everything idle is evicted."""
    large = replace(DEMAND, memory_mb=1000)
    idle = [other(1, since=1), prewarmed(2)]
    assert isinstance(decide(large, [*idle, other(3, State.LEASED)], Bounds(10, 500)), Wait)
    assert decide(large, idle, Bounds(10, 500)) == UsePrewarmed(2, evict=(1,))
    assert decide(replace(large, kind=CPP), idle, Bounds(10, 500)) == Create(evict=(1, 2))
    assert decide(large, [], Bounds(10, 500)) == Create()
    assert decide(large, [held(1), other(2)], Bounds(10, 500)) == Reuse(1, evict=(2,))


# -- expiry and prewarming


def test_only_idle_containers_expire() -> None:
    """At the idle timeout, not before; prewarmed ones and those in use never."""
    pool = [held(1, since=10), held(2, since=11), prewarmed(3, since=0), held(4, State.LEASED)]
    pool += [held(5, State.CLEANING), held(6, State.PAUSING)]
    assert expired(pool, 70.0, 60.0) == [1]
    assert expired(pool, 69.9, 60.0) == []
    assert expired(pool, 71.0, 0.0) == [1, 2]


def test_the_first_missing_kind_is_prewarmed_next() -> None:
    """In the given order, until there are enough of each."""
    wanted = [(PYTHON, 2), (CPP, 1)]
    assert missing([], wanted, ROOMY, 100) == PYTHON
    assert missing([prewarmed(1)], wanted, ROOMY, 100) == PYTHON
    assert missing([prewarmed(1), prewarmed(2)], wanted, ROOMY, 100) == CPP
    assert missing([prewarmed(1), prewarmed(2), prewarmed(3, CPP)], wanted, ROOMY, 100) is None
    assert missing([], [], ROOMY, 100) is None


@pytest.mark.parametrize("state", [State.STARTING, State.PAUSING, State.PREWARMED])
def test_what_is_being_started_or_paused_is_not_missing(state: State) -> None:
    """A prewarmed container counts from its start on, and while it is being paused."""
    assert missing([replace(prewarmed(1), state=state)], [(PYTHON, 1)], ROOMY, 100) is None


@pytest.mark.parametrize("state", [State.STARTING, State.LEASED, State.CLEANING, State.IDLE, State.PAUSING])
def test_a_container_that_has_a_function_is_not_prewarmed(state: State) -> None:
    """Not while it starts for a request either."""
    assert missing([held(1, state)], [(PYTHON, 1)], ROOMY, 100) == PYTHON


def test_an_ending_container_is_missing() -> None:
    """It is replaced."""
    assert missing([replace(prewarmed(1), state=State.ENDING)], [(PYTHON, 1)], Bounds(1, 100), 100) == PYTHON


def test_nothing_is_evicted_for_a_prewarmed_container() -> None:
    """It is prewarmed only if it fits without an eviction."""
    pool = [other(1, memory_mb=50)]
    assert missing(pool, [(PYTHON, 1)], Bounds(2, 150), 100) == PYTHON
    assert missing(pool, [(PYTHON, 1)], Bounds(1, 150), 100) is None
    assert missing(pool, [(PYTHON, 1)], Bounds(2, 149), 100) is None


# -- the table of states


def test_ending_follows_every_state_and_nothing_follows_ending() -> None:
    """Every container can be given up at any moment, but only once."""
    assert {state for state, after in MOVES.items() if State.ENDING in after} == set(State) - {State.ENDING}
    assert MOVES[State.ENDING] == frozenset()


@pytest.mark.parametrize("state", State)
def test_no_state_follows_itself(state: State) -> None:
    """A move that changes nothing is a bug: another thread has made it already."""
    with pytest.raises(IllegalMoveError, match=f"cannot go from {state.value} to {state.value}"):
        check(state, state)


# -- properties of every pool

keys = st.sampled_from(["code", "old", "x", "y"])
functions = st.sampled_from(["f", "g"])
kinds = st.sampled_from([PYTHON, ONLINE, CPP])
memory = st.integers(0, 300)


@st.composite
def containers(draw: st.DrawFn) -> list[ContainerFacts]:
    """Any pool: only prewarmed containers, and some that start or are being paused, are without a function."""
    found = []
    for number in range(draw(st.integers(0, 9))):
        state = draw(st.sampled_from(State))
        may_lack = state in {State.STARTING, State.PAUSING, State.ENDING}
        bare = state is State.PREWARMED or (may_lack and draw(st.booleans()))
        key, function_id = (None, None) if bare else (draw(keys), draw(functions))
        since = draw(st.integers(0, 5))  # few values: ties are common
        found.append(ContainerFacts(number, state, draw(kinds), key, function_id, draw(memory), since))
    return draw(st.permutations(found))


demands = st.builds(
    Demand,
    kind=kinds,
    key=keys,
    function_id=functions,
    memory_mb=st.integers(1, 300),
    ahead=st.integers(0, 2),
    waits_for_pause=st.booleans(),
)
pool_bounds = st.builds(
    Bounds, containers=st.integers(1, 10), memory_mb=st.integers(1, 1200), of_one_function=st.integers(0, 3)
)


def after(demand: Demand, pool: Sequence[ContainerFacts], decision: Decision, bounds: Bounds) -> list[ContainerFacts]:
    """The containers that are alive after the decision, the one that it leases last."""
    assert not isinstance(decision, Wait)
    taken = None if isinstance(decision, Create) else decision.number
    gone = {*decision.evict, taken}
    left = [one for one in pool if one.number not in gone and one.state is not State.ENDING]
    return [*left, ContainerFacts(-1, State.LEASED, demand.kind, demand.key, demand.function_id, demand.memory_mb, 9)]


def fits(pool: Sequence[ContainerFacts], bounds: Bounds) -> bool:
    """Whether the pool's own bounds hold."""
    return len(pool) <= bounds.containers and sum(one.memory_mb for one in pool) <= bounds.memory_mb


@given(demands, containers(), pool_bounds)
def test_nothing_in_use_is_ever_evicted(demand: Demand, pool: list[ContainerFacts], bounds: Bounds) -> None:
    """Only unused containers are evicted, none twice, and never the one that is leased."""
    decision = decide(demand, pool, bounds)
    event(type(decision).__name__)
    if isinstance(decision, Wait):
        return
    states = {one.number: one.state for one in pool}
    assert all(states[number] in EVICTABLE for number in decision.evict)
    assert len(set(decision.evict)) == len(decision.evict)
    if not isinstance(decision, Create):
        assert decision.number not in decision.evict


@given(demands, containers(), pool_bounds)
def test_the_bounds_hold_or_it_runs_alone(demand: Demand, pool: list[ContainerFacts], bounds: Bounds) -> None:
    """After every decision, number and memory are within the bounds, except for one request larger than the pool."""
    decision = decide(demand, pool, bounds)
    if isinstance(decision, Wait):
        return
    left = after(demand, pool, decision, bounds)
    assert fits(left, bounds) or len(left) == 1


@given(demands, containers(), pool_bounds)
def test_the_cap_of_a_function_holds(demand: Demand, pool: list[ContainerFacts], bounds: Bounds) -> None:
    """No decision brings a function above its cap: it had more before, or stays within it."""
    decision = decide(demand, pool, bounds)
    if isinstance(decision, (Wait, Reuse)) or not bounds.of_one_function:
        return
    before = sum(one.function_id == demand.function_id and one.state is not State.ENDING for one in pool)
    own = sum(one.function_id == demand.function_id for one in after(demand, pool, decision, bounds))
    assert own <= max(bounds.of_one_function, before)


@given(demands, containers(), pool_bounds)
def test_a_request_that_waits_for_room_cannot_be_served(
    demand: Demand, pool: list[ContainerFacts], bounds: Bounds
) -> None:
    """Not even without any idle container. Something is in use, so its turn will come."""
    decision = decide(demand, pool, bounds)
    if not isinstance(decision, Wait) or decision.wait_for is not WaitFor.ROOM:
        return
    stays = [one for one in pool if one.state in IN_USE | IN_BETWEEN]
    assert stays
    assert not fits(
        [*stays, ContainerFacts(-1, State.LEASED, demand.kind, demand.key, "f", demand.memory_mb, 9)], bounds
    )


@given(demands, containers(), pool_bounds)
def test_a_decision_depends_on_the_pool_alone(demand: Demand, pool: list[ContainerFacts], bounds: Bounds) -> None:
    """The same pool gives the same decision, and deciding changes nothing."""
    before = list(pool)
    assert decide(demand, pool, bounds) == decide(demand, tuple(pool), bounds)
    assert pool == before


@given(demands, containers(), pool_bounds)
def test_leased_containers_always_match(demand: Demand, pool: list[ContainerFacts], bounds: Bounds) -> None:
    """A warm container has this code, image and network; a prewarmed one has this image and network and no code."""
    decision = decide(demand, pool, bounds)
    if isinstance(decision, (Wait, Create)):
        return
    leased = next(one for one in pool if one.number == decision.number)
    assert leased.kind == demand.kind
    if isinstance(decision, Reuse):
        assert (leased.key, leased.state) == (demand.key, State.IDLE)
    else:
        assert (leased.key, leased.state) == (None, State.PREWARMED)
    assert State.LEASED in MOVES[leased.state]


@given(demands, containers(), pool_bounds)
def test_a_warm_container_is_never_passed_over(demand: Demand, pool: list[ContainerFacts], bounds: Bounds) -> None:
    """If a container of this code is idle, the request reuses one or waits for room."""
    if any(one.state is State.IDLE and (one.key, one.kind) == (demand.key, demand.kind) for one in pool):
        decision = decide(demand, pool, bounds)
        assert isinstance(decision, Reuse) or (isinstance(decision, Wait) and decision.wait_for is WaitFor.ROOM)


@given(containers(), pool_bounds, st.integers(0, 3), memory)
def test_no_more_are_evicted_than_needed(
    pool: list[ContainerFacts], bounds: Bounds, count: int, memory_mb: int
) -> None:
    """The last container that is evicted is still needed. Nothing is evicted if all together are too few."""
    going = make_room(pool, bounds, containers=count, memory_mb=memory_mb)
    evictable = [one.number for one in pool if one.state in EVICTABLE]

    def suffices(gone: Sequence[int]) -> bool:
        left = [one for one in pool if one.number not in gone]
        return len(left) + count <= bounds.containers and (
            sum(one.memory_mb for one in left) + memory_mb <= bounds.memory_mb
        )

    event("none would do" if going is None else f"{len(going)} go")
    if going is None:
        assert not suffices(evictable)
        return
    assert suffices(going)
    assert not going or not suffices(going[:-1])


@given(containers(), pool_bounds, st.integers(0, 3), memory)
def test_the_longest_idle_go_first_and_prewarmed_ones_last(
    pool: list[ContainerFacts], bounds: Bounds, count: int, memory_mb: int
) -> None:
    """No container that stays has been idle longer than one that is evicted, unless it is prewarmed and the other is not."""
    going = make_room(pool, bounds, containers=count, memory_mb=memory_mb) or []
    rank = {one.number: (one.state is State.PREWARMED, one.since) for one in pool if one.state in EVICTABLE}
    assert [rank[number] for number in going] == sorted(rank[number] for number in going)
    stays = [rank[number] for number in rank if number not in going]
    assert all(rank[number] <= other for number in going for other in stays)


@given(containers(), pool_bounds, st.lists(st.tuples(kinds, st.integers(0, 3)), max_size=3), st.integers(1, 300))
def test_prewarming_comes_to_an_end(
    pool: list[ContainerFacts], bounds: Bounds, wanted: list[tuple[ContainerKind, int]], memory_mb: int
) -> None:
    """Prewarming what is missing, again and again, stops within the bounds and with no more than requested."""
    for number in range(100, 120):
        kind = missing(pool, wanted, bounds, memory_mb)
        if kind is None:
            break
        pool = [*pool, prewarmed(number, kind, memory_mb=memory_mb)]
        assert fits([one for one in pool if one.state is not State.ENDING], bounds)
        made = sum(one.number >= 100 and one.kind == kind for one in pool)
        assert made <= max(count for one, count in wanted if one == kind)
    else:
        pytest.fail("it never ended")
