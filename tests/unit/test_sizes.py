"""Which size is chosen: as a table over plain samples, and as properties of all samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.request import parse_request
from nanogrid.result import Outcome
from nanogrid.settings import Settings
from nanogrid.tuner.sizes import (
    MEASURED,
    NOISE,
    NOISE_MS,
    Measurement,
    Size,
    SizeSample,
    Strategy,
    choose,
    gb_seconds,
    is_measured,
    score,
    standard_error,
    summarize,
    time_range,
    trimmed,
)

MIB = 1024 * 1024
OK = Outcome.SUCCEEDED


def samples(*times_ms: float, outcome: Outcome = OK, warm: bool = True) -> list[SizeSample]:
    """Runs that took these times."""
    return [SizeSample(outcome, time_ms, warm=warm) for time_ms in times_ms]


def measured(
    memory_mb: int, time_ms: float, *, spread: float = 0.0, cpus: float = 1.0, outcome: Outcome = OK
) -> Measurement:
    """A size with three runs around this time, one shorter and one longer by a share."""
    times = (time_ms * (1 - spread), time_ms, time_ms * (1 + spread))
    return summarize(Size(memory_mb, cpus), samples(*times, outcome=outcome))


@pytest.mark.parametrize(
    ("sizes", "cost", "speed", "balanced"),
    [
        # More memory gains nothing: the smallest size, for every strategy.
        ({64: 100, 128: 100, 512: 100}, 64, 64, 64),
        # Differences within the noise do not count, even if the larger size is slightly faster.
        ({64: 104, 128: 102, 512: 100}, 64, 64, 64),
        ({64: 3.4, 128: 2.9, 512: 2.6}, 64, 64, 64),
        # Twice the memory takes 20 % off the time: faster, but not worth it.
        ({128: 1000, 256: 800}, 128, 256, 128),
        # 40 % off: more expensive in GB-seconds, and balanced chooses it.
        ({128: 1000, 256: 600}, 128, 256, 256),
        # More than half off: better in every respect.
        ({128: 1000, 256: 400}, 256, 256, 256),
        # The curve of a memory-bound function: each strategy chooses a different size.
        ({128: 1000, 256: 600, 512: 480}, 128, 512, 256),
    ],
)
def test_each_strategy_has_its_choice(sizes: dict[int, float], cost: int, speed: int, balanced: int) -> None:
    """For cost, for speed, and between them."""
    all_sizes = [measured(memory_mb, time_ms) for memory_mb, time_ms in sizes.items()]
    assert {strategy: choose(all_sizes, strategy) for strategy in Strategy} == {
        Strategy.COST: Size(cost, 1.0),
        Strategy.SPEED: Size(speed, 1.0),
        Strategy.BALANCED: Size(balanced, 1.0),
    }


def test_times_that_spread_need_more_runs_to_be_told_apart() -> None:
    """A tenth faster is significant if times are steady. If they spread, it is noise until there are enough runs."""
    steady = [measured(128, 100, spread=0.01), measured(256, 90, spread=0.01)]
    assert choose(steady, Strategy.SPEED) == Size(256, 1)
    spread = [measured(128, 100, spread=0.15), measured(256, 90, spread=0.15)]
    assert choose(spread, Strategy.SPEED) == Size(128, 1)
    many = [
        summarize(Size(memory_mb, 1), samples(*[time_ms * share for share in (0.85, 1, 1.15)] * 30))
        for memory_mb, time_ms in ((128, 100), (256, 90))
    ]
    assert choose(many, Strategy.SPEED) == Size(256, 1)


def test_more_cores_are_taken_only_where_they_help() -> None:
    """Cores cost nothing by themselves, so a second one is chosen if it makes runs faster, and not otherwise."""
    helps = [measured(128, 1000, cpus=1), measured(128, 520, cpus=2)]
    assert {choose(helps, strategy) for strategy in Strategy} == {Size(128, 2)}
    idle = [measured(128, 1000, cpus=1), measured(128, 990, cpus=2)]
    assert {choose(idle, strategy) for strategy in Strategy} == {Size(128, 1)}


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not OK])
def test_a_size_with_a_failure_is_not_chosen(outcome: Outcome) -> None:
    """However fast it failed, and whether or not other runs of it succeeded."""
    failing = summarize(Size(64, 1), [*samples(1, 1, 1), *samples(1, outcome=outcome), *samples(1)])
    assert failing.outcome is outcome
    assert choose([failing, measured(512, 900)], Strategy.COST) == Size(512, 1)
    assert choose([failing], Strategy.SPEED) is None


def test_without_any_size_there_is_no_choice() -> None:
    """None instead of an error; but a size without samples is the caller's mistake."""
    assert choose([], Strategy.COST) is None
    with pytest.raises(ValueError, match="no samples"):
        summarize(Size(64, 1), [])


def test_outliers_are_trimmed_at_both_ends() -> None:
    """A fifth at each end, rounded down: none of four."""
    assert trimmed([5, 1, 3, 1000]) == [1, 3, 5, 1000]
    assert trimmed([5, 1, 3, 1000, 4]) == [3, 4, 5]
    assert trimmed([10, 9, 8, 7, 6, 5, 4, 3, 2, 1000]) == [4, 5, 6, 7, 8, 9]
    found = summarize(Size(64, 1), samples(5, 1, 3, 1000, 4))
    assert (found.time_ms, found.shortest_ms, found.longest_ms, found.runs) == (4, 3, 5, 5)


def test_the_error_of_a_mean_is_that_of_a_trimmed_one() -> None:
    """The trimmed times are moved to the ends of the rest; without trimming it is the usual standard error."""
    assert standard_error([100]) == 0
    assert standard_error([90, 110]) == pytest.approx(10)
    # 1 and 1000 become 3 and 5: deviation 1 of [3, 3, 4, 5, 5], three fifths kept.
    assert standard_error([5, 1, 3, 1000, 4]) == pytest.approx(1 / (0.6 * 5**0.5))


def test_a_warm_up_counts_for_memory_only() -> None:
    """Its time is that of a start, but the limit must suffice for it."""
    warm_up = SizeSample(OK, 900, peak_memory_bytes=50 * MIB, cpu_ms=700, warm=False, counted=False)
    run = SizeSample(OK, 10, peak_memory_bytes=20 * MIB, cpu_ms=8)
    found = summarize(Size(64, 1), [warm_up, run, replace(run, peak_memory_bytes=None, cpu_ms=None)])
    assert (found.time_ms, found.cpu_ms, found.runs, found.not_warm) == (10, 8, 2, 0)
    assert found.peak_memory_bytes == 50 * MIB


def test_a_warm_up_that_fails_takes_the_size_out() -> None:
    """It has no times then, and no GB-seconds."""
    found = summarize(Size(64, 1), [SizeSample(Outcome.OUT_OF_MEMORY, 30, counted=False)])
    assert (found.outcome, found.runs, found.time_ms, found.gb_seconds) == (Outcome.OUT_OF_MEMORY, 0, None, None)
    assert not found.succeeded


def test_a_warm_up_alone_is_no_measurement() -> None:
    """A size that was never timed is not chosen."""
    found = summarize(Size(64, 1), [SizeSample(OK, 30, counted=False)])
    assert choose([found], Strategy.COST) is None


def test_runs_that_were_not_warm_are_counted_and_not_timed() -> None:
    """Unless none was warm, as with images that need a container for each run."""
    cold = samples(400, 500, warm=False)
    assert summarize(Size(64, 1), [*cold, *samples(10)]).time_ms == 10
    assert summarize(Size(64, 1), [*cold, *samples(10)]).not_warm == 2
    assert summarize(Size(64, 1), cold).time_ms == 450


def test_gb_seconds_are_those_of_lambda() -> None:
    """1024 MiB for one second is 1."""
    assert gb_seconds(Size(1024, 1), 1000) == 1
    assert measured(256, 200).gb_seconds == pytest.approx(0.05)


def test_the_tuner_can_tell_a_measurement() -> None:
    """By the prefix of its function id, which requests accept."""
    request = parse_request(
        {"functionId": f"{MEASURED}hello", "runtime": "python", "s3Bucket": "code", "s3Key": "k"},
        Settings(),
        request_id="r",
    )
    assert is_measured(request.function_id)
    assert not is_measured("tuned")


MEASUREMENTS = st.lists(
    st.builds(
        measured,
        st.integers(6, 4096),
        st.floats(0.1, 900_000),
        spread=st.floats(0, 0.5),
        cpus=st.sampled_from([0.5, 1.0, 2.0]),
        outcome=st.sampled_from([OK, OK, OK, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT, Outcome.FAILED]),
    ),
    max_size=8,
    unique_by=lambda one: one.size,
)
STRATEGIES = st.sampled_from(Strategy)


@given(MEASUREMENTS, STRATEGIES)
def test_the_choice_is_a_size_that_succeeded(sizes: list[Measurement], strategy: Strategy) -> None:
    """If any succeeded, one is chosen, whatever their order, and failed sizes change nothing."""
    working = [one for one in sizes if one.succeeded]
    choice = choose(sizes, strategy)
    assert (choice is None) == (not working)
    assert choice is None or choice in [one.size for one in working]
    assert choose(list(reversed(sizes)), strategy) == choose(working, strategy) == choice


@given(MEASUREMENTS, STRATEGIES)
def test_the_choice_is_nearly_the_best_and_no_smaller_one_is(sizes: list[Measurement], strategy: Strategy) -> None:
    """It is not worse than the best by more than the noise of its own time; every smaller size is."""
    working = {one.size: time_range(one) for one in sizes if one.succeeded}
    choice = choose(sizes, strategy)
    if choice is None:
        return
    best = min(score(size, time.longest_ms, strategy) for size, time in working.items())
    as_good = {size for size, time in working.items() if score(size, time.shortest_ms, strategy) <= best}
    assert choice in as_good
    assert not any(size < choice for size in as_good)


@given(MEASUREMENTS)
def test_a_time_stands_for_a_range_around_it(sizes: list[Measurement]) -> None:
    """Downwards at least a twentieth and a millisecond, and never below zero."""
    for one in sizes:
        if one.time_ms is not None:
            shortest, longest = time_range(one)
            assert 0 <= shortest <= max(0.0, min(one.time_ms - NOISE * one.time_ms, one.time_ms - NOISE_MS))
            assert longest >= one.time_ms


@given(MEASUREMENTS, STRATEGIES)
def test_no_choice_is_beaten_in_both(sizes: list[Measurement], strategy: Strategy) -> None:
    """No size of at most its memory is faster beyond the noise."""
    chosen = next((one for one in sizes if one.size == choose(sizes, strategy)), None)
    if chosen is None:
        return
    beaten_at = time_range(chosen).shortest_ms
    better = [
        one
        for one in sizes
        if one.succeeded and one.size.memory_mb <= chosen.size.memory_mb and time_range(one).longest_ms < beaten_at
    ]
    assert better == []


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=30))
def test_the_mean_lies_within_what_was_kept(times_ms: list[float]) -> None:
    """Trimming leaves at least one time and removes the same number at both ends; the mean is between the ends."""
    kept = trimmed(times_ms)
    assert kept
    assert (len(times_ms) - len(kept)) % 2 == 0
    found = summarize(Size(64, 1), samples(*times_ms))
    assert found.time_ms is not None
    assert kept[0] * (1 - 1e-9) <= found.time_ms <= kept[-1] * (1 + 1e-9)
