"""What the tuner recommends, and which limit the next run gets: as tables, and as properties of all records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.result import Outcome
from nanogrid.tuner.advice import Advice, decide
from nanogrid.tuner.recommendation import Recommendation, recommend
from nanogrid.tuner.record import Record
from nanogrid.tuner.rules import Rules
from tests.unit.test_tuner_record import EMPTY, KILLED, NOW, RULES, RUN, drawn_samples, learned, runs

LATER = NOW + RULES.backoff_s + 100


def told(record: Record, requested_mb: int = 512, rules: Rules = RULES) -> Recommendation:
    """Return the recommendation after every temporary effect is over."""
    return recommend(record, requested_mb, rules, LATER)


def advised(record: Record, requested_mb: int = 512, *, code: str = "code-a", at_s: float = LATER) -> Advice:
    """Return the advice for the next run."""
    return decide(record, requested_mb, code, RULES, at_s)


# -- the sentence


def test_insufficient_data_says_how_much_is_missing() -> None:
    """It gives a number of runs, and no limit."""
    assert told(learned(*runs(7))) == Recommendation(
        None, 13, 0.0, "insufficient data: 7 of 20 runs are measured, 13 more are needed"
    )
    assert told(EMPTY).missing == 20


def test_less_is_recommended_with_its_saving() -> None:
    """464 MiB less for 0.9 s, a thousand times."""
    recommended = told(learned(*runs(25, 41.0)))
    assert recommended.sentence == (
        "lower memoryMb from 512 to 48: the highest of 25 runs used 41 MiB, which saves 408 GB-seconds per 1000 runs"
    )
    assert (recommended.memory_mb, recommended.missing) == (48, 0)
    assert recommended.saving_gb_s == pytest.approx(464 / 1024 * 0.9 * 1000)


def test_a_small_saving_has_two_digits() -> None:
    """Functions of a millisecond save little."""
    assert told(learned(*runs(25, 41.0, duration_ms=1.0))).sentence.endswith(
        "which saves 0.45 GB-seconds per 1000 runs"
    )


def test_where_rare_peaks_are_left_out_the_sentence_says_so() -> None:
    """It does not claim to cover the highest peak."""
    record = learned(*runs(1500, 98.0), replace(RUN, peak_mb=400.0))
    assert told(record).sentence.startswith("lower memoryMb from 512 to 112: 99.9 % of 1501 runs used at most 101 MiB")


@pytest.mark.parametrize("requested_mb", [48, 47])
def test_what_is_right_stays(requested_mb: int) -> None:
    """Neither the step nor the floor is a reason to recommend more than enough."""
    recommended = told(learned(*runs(25, 40.0)), requested_mb)
    assert recommended.memory_mb == requested_mb
    assert recommended.sentence == f"memoryMb {requested_mb} is right: the highest of 25 runs used 40 MiB"


def test_what_is_close_to_its_limit_is_told_to_raise_it() -> None:
    """The margin is missing."""
    recommended = told(learned(*runs(25, 127.0, requested_mb=128)), 128)
    assert recommended.sentence == "raise memoryMb from 128 to 144: the highest of 25 runs used 127 MiB"
    assert recommended.saving_gb_s < 0


OWN = replace(KILLED, peak_mb=128.0, limit_mb=128, requested_mb=128, lowered=False)


def test_an_oom_kill_under_its_own_limit_is_told_to_raise_it() -> None:
    """It counts as a sample, like any other."""
    recommended = told(learned(*runs(25, 100.0), OWN), 128)
    assert recommended.sentence == "raise memoryMb from 128 to 256: a run was out of memory"
    assert recommended.memory_mb == 256


def test_it_is_told_so_before_there_is_enough_data() -> None:
    """A first run that is killed gives the full advice except for the number."""
    assert told(learned(OWN), 128) == Recommendation(
        None, 19, 0.0, "raise memoryMb above 128: a run was out of memory (for a number 19 more runs are needed)"
    )


def test_whoever_has_raised_it_is_not_told_again() -> None:
    """Nor is a function whose last kill is long ago."""
    record = learned(OWN)
    assert "insufficient" in told(record, 256).sentence
    assert "insufficient" in recommend(record, 128, RULES, NOW + RULES.half_life_s).sentence


# -- the limit


def test_a_function_that_asks_for_too_much_gets_less() -> None:
    """Once there are enough runs, and not before."""
    assert advised(learned(*runs(19))).limit_mb == 512
    assert not advised(learned(*runs(19))).lowered
    advice = advised(learned(*runs(20)))
    assert (advice.limit_mb, advice.lowered, advice.recommended_mb) == (48, True, 48)
    assert advice.sentence.startswith("lower memoryMb from 512 to 48")


def test_nobody_gets_more_than_is_requested() -> None:
    """The recommendation is higher, but the limit stays."""
    advice = advised(learned(*runs(25, 127.0)), 128)
    assert (advice.limit_mb, advice.lowered, advice.recommended_mb) == (128, False, 144)


def test_after_a_mistake_the_function_has_its_requested_limit_for_a_while() -> None:
    """Then the learned limit applies: from the guess, or from the measurement of the re-run if there was one."""
    killed = learned(*runs(30), replace(KILLED, at_s=NOW + 60))
    over = NOW + 60 + RULES.backoff_s
    assert (advised(killed, at_s=over - 1).limit_mb, advised(killed, at_s=over - 1).recommended_mb) == (512, 176)
    assert (advised(killed, at_s=over).limit_mb, advised(killed, at_s=over).lowered) == (176, True)
    again = learned(replace(RUN, at_s=NOW + 61, peak_mb=300.0, rerun=True), record=killed)
    assert advised(again, at_s=over - 1).limit_mb == 512
    assert advised(again, at_s=over).limit_mb == 336


def test_an_oom_kill_under_its_own_limit_changes_no_limit() -> None:
    """There is no earlier limit to return to, and no reason for a re-run."""
    advice = advised(learned(*runs(25, 100.0), OWN), 128, at_s=NOW + 1)
    assert (advice.limit_mb, advice.lowered, advice.tuned_mb) == (128, False, 256)


def test_a_ceiling_below_the_need_is_no_limit() -> None:
    """The ceiling bounds recommendations; no run gets a limit that is known to be too small."""
    rules = replace(RULES, ceiling_mb=256)
    record = learned(*runs(25, 300.0), rules=rules)
    assert decide(record, 512, "code-a", rules, LATER).limit_mb == 512
    assert decide(record, 512, "code-a", rules, LATER).recommended_mb == 256


def test_new_code_is_judged_before_its_first_run() -> None:
    """By the runs of the old code, with the margin of few samples; asking does not change the record."""
    record = learned(*runs(2000, 46.0))
    assert (advised(record).limit_mb, advised(record, code="code-b").limit_mb, advised(record).limit_mb) == (48, 48, 48)
    few = learned(*runs(40, 43.0))
    assert (advised(few).limit_mb, advised(few, code="code-b").limit_mb) == (48, 64)
    assert advised(learned(*runs(19)), code="code-b").lowered is False


@pytest.mark.parametrize(("requested_mb", "limit_mb", "lowered"), [(512, 48, True), (48, 48, False), (40, 40, False)])
def test_one_advice_serves_every_requested_limit(requested_mb: int, limit_mb: int, lowered: bool) -> None:
    """The advice is stored per function, and requests differ."""
    advice = advised(learned(*runs(20)), 256).under(requested_mb)
    assert (advice.limit_mb, advice.lowered, advice.requested_mb) == (limit_mb, lowered, requested_mb)


def test_an_advice_that_stands_back_does_so_for_every_request() -> None:
    """If missing data keeps the limit at 256, it also keeps it at 512."""
    assert advised(EMPTY, 256).under(512).limit_mb == 512


# -- properties of all records


@given(drawn_samples, st.integers(6, 20_000), st.floats(NOW - 10, NOW + 2e5), st.sampled_from(["a", "new"]))
def test_every_advice_is_within_its_bounds(samples: list, requested_mb: int, now_s: float, code: str) -> None:  # type: ignore[type-arg]
    """Never above the request; lowered means below it; JSON keeps it unchanged; asking twice returns the same."""
    record = learned(*samples)
    advice = decide(record, requested_mb, code, RULES, now_s)
    assert 0 < advice.limit_mb <= requested_mb
    assert advice.lowered == (advice.limit_mb < requested_mb)
    assert advice.limit_mb >= min(requested_mb, RULES.floor_mb)
    assert "\n" not in advice.sentence
    assert Advice.from_json(json.loads(json.dumps(advice.to_json()))) == advice
    assert decide(record, requested_mb, code, RULES, now_s) == advice
    if record.backs_off(now_s) or record.samples < RULES.minimum_samples:
        assert not advice.lowered
    assert advice.under(requested_mb) is advice


@given(st.lists(st.floats(1, 9000), min_size=20, max_size=60), st.integers(6, 10_240))
def test_no_limit_is_lower_than_the_highest_of_few_peaks(peaks: list[float], requested_mb: int) -> None:
    """Below a thousand runs every observed peak fits, as far as the request allows."""
    record = learned(*[replace(RUN, peak_mb=peak) for peak in peaks])
    assert decide(record, requested_mb, "code-a", RULES, LATER).limit_mb >= min(requested_mb, max(peaks))


@given(drawn_samples)
def test_out_of_memory_under_a_lowered_limit_always_leads_back(samples: list) -> None:  # type: ignore[type-arg]
    """Whatever happened before, the next run gets what it requests."""
    record = learned(*samples, replace(KILLED, at_s=NOW + 86400, outcome=Outcome.OUT_OF_MEMORY))
    assert decide(record, 512, "code-a", RULES, NOW + 86401).limit_mb == 512
