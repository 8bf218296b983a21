"""What a run changes in the record of its function: samples, OOM kills, new code, back-off, hysteresis, JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.result import Outcome
from nanogrid.tuner.record import CODES, DOUBLINGS, GUESSES, Record, Sample, learn, missing, need
from nanogrid.tuner.rules import Rules

RULES = Rules(
    percentile=0.999, margin=0.15, least_margin=0.03, floor_mb=32, ceiling_mb=10_240, minimum_samples=20,
    new_code_weight=0.25, backoff_s=600.0, backoff_runs=5, hold_s=600.0,
)  # fmt: skip
"""Fixed here, so that the expected numbers do not change with a default."""

NOW = 1_700_000_000.0
EMPTY = Record.empty(RULES)
RUN = Sample(NOW, 40.0, Outcome.SUCCEEDED, 900.0, 850.0, 512, 512, "code-a", lowered=False)
KILLED = replace(RUN, outcome=Outcome.OUT_OF_MEMORY, peak_mb=48.0, limit_mb=48, lowered=True)


def learned(*samples: Sample, record: Record = EMPTY, rules: Rules = RULES) -> Record:
    """Return the record after these samples."""
    for sample in samples:
        record = learn(record, sample, rules)
    return record


def target_mb(record: Record, rules: Rules = RULES, requested_mb: int = 512) -> int | None:
    """Return the need, rounded and bounded."""
    needed = need(record, requested_mb, rules)
    return None if needed is None else rules.rounded(needed.memory_mb)


def runs(count: int, peak_mb: float = 40.0, **changed: object) -> list[Sample]:
    """This many runs, a second apart."""
    return [replace(RUN, at_s=NOW + number, peak_mb=peak_mb, **changed) for number in range(count)]  # type: ignore[arg-type]


# -- samples


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OUTPUT_LIMIT])
def test_a_run_that_had_its_memory_is_a_sample(outcome: Outcome) -> None:
    """Whether it succeeded or failed."""
    record = learned(replace(RUN, outcome=outcome))
    assert (record.samples, record.runs, record.histogram.highest_mb, record.mean_ms) == (1, 1, 40.0, 900.0)


@pytest.mark.parametrize("sample", [
    replace(RUN, outcome=Outcome.CANCELLED), replace(RUN, outcome=Outcome.NOT_RUN, peak_mb=None), replace(RUN, peak_mb=None),
])  # fmt: skip
def test_a_run_that_tells_nothing_is_none(sample: Sample) -> None:
    """A cancelled run may not have reached its peak, and a host may not report peaks."""
    record = learned(sample)
    assert (record.samples, record.runs, bool(record.histogram)) == (0, 0, False)


@pytest.mark.parametrize(("used", "needed"), [(48.0, 148.0), (500.0, 600.0), (501.0, 601.2), (1000.0, 1200.0)])
@pytest.mark.parametrize("lowered", [True, False])
def test_an_oom_kill_is_a_sample_of_more_than_was_used(used: float, needed: float, lowered: bool) -> None:
    """100 MB or a fifth more, whichever is larger; under the function's own limit as under a lowered one."""
    record = learned(replace(KILLED, peak_mb=used, lowered=lowered))
    assert record.histogram.highest_mb == pytest.approx(needed)
    assert record.samples == 1


def test_an_oom_kill_without_a_peak_used_its_limit() -> None:
    """The kernel killed it at the limit."""
    assert learned(replace(KILLED, peak_mb=None)).histogram.highest_mb == 148


def test_the_mean_duration_follows_the_runs() -> None:
    """The mean covers all runs while they are few. An OOM kill ends a run early, so it does not count."""
    record = learned(replace(RUN, duration_ms=100), replace(RUN, duration_ms=300), replace(KILLED, duration_ms=9999))
    assert record.mean_ms == 200


# -- OOM kills under a lowered limit, and the re-runs


def test_a_second_run_replaces_the_guess() -> None:
    """A function of 50 MB that was killed at 48 needs 50 MB, not 148."""
    killed = learned(*runs(30), replace(KILLED, at_s=NOW + 40))
    assert killed.histogram.highest_mb == 148
    measured = learned(replace(RUN, at_s=NOW + 41, peak_mb=50.0, rerun=True), record=killed)
    assert measured.histogram.highest_mb == 50
    assert (measured.samples, measured.runs, measured.guesses) == (31, 31, ())


def test_without_a_second_run_the_guess_stays() -> None:
    """Other runs at the same time do not replace it."""
    record = learned(*runs(30), replace(KILLED, at_s=NOW + 40), replace(RUN, at_s=NOW + 41))
    assert record.histogram.highest_mb == 148
    assert len(record.guesses) == 1


def test_guesses_are_few() -> None:
    """A record has constant size however many runs were killed at once; the oldest guesses are dropped."""
    record = learned(*[replace(KILLED, at_s=NOW + number) for number in range(50)])
    assert len(record.guesses) == GUESSES
    assert record.setbacks == 50


def test_a_second_run_without_a_guess_is_a_run() -> None:
    """The guess was dropped, or came from a worker whose sample was lost."""
    assert learned(replace(RUN, rerun=True)).samples == 1


def test_back_off_begins_with_an_oom_kill_under_a_lowered_limit() -> None:
    """It lasts as long as the rules say, from the last kill."""
    assert learned(KILLED).backoff_until_s == NOW + RULES.backoff_s
    assert learned(replace(KILLED, at_s=NOW + 5), KILLED).backoff_until_s == NOW + 5 + RULES.backoff_s
    assert learned(KILLED).backs_off(NOW + RULES.backoff_s - 1)
    assert not learned(KILLED).backs_off(NOW + RULES.backoff_s)


def test_a_back_off_lasts_for_so_many_runs_at_most() -> None:
    """Only runs with the requested limit count; the re-run of the killed one does not."""
    again = learned(KILLED, replace(RUN, rerun=True), replace(RUN, lowered=True, limit_mb=48))
    assert again.backoff_runs == 5
    assert learned(*runs(4), record=again).backs_off(NOW + 10)
    assert not learned(*runs(5), record=again).backs_off(NOW + 10)


def test_a_back_off_that_a_mistake_follows_closely_is_twice_as_long() -> None:
    """A function whose inputs changed is left alone; after a calm time the back-off starts from its base again."""
    record, lengths = EMPTY, []
    for _ in range(4):
        record = learn(record, KILLED, RULES)
        lengths.append(record.backoff_runs)
        record = learned(*runs(record.backoff_runs + 10), record=record)
    assert lengths == [5, 10, 20, 40]
    calm = learned(*runs(400), KILLED, record=record)
    assert calm.backoff_runs == 5
    assert calm.setbacks == 5


def test_runs_that_were_killed_at_the_same_time_are_one_mistake() -> None:
    """They had started before the first kill was known; the number of doublings is limited."""
    assert learned(KILLED, KILLED, KILLED).backoff_runs == 5
    record = EMPTY
    for _ in range(20):
        record = learned(*runs(record.backoff_runs), KILLED, record=record)
    assert record.backoff_runs == 5 << DOUBLINGS


def test_an_oom_kill_under_its_own_limit_is_no_setback() -> None:
    """The function requests too little; there is no earlier limit to return to."""
    record = learned(replace(KILLED, lowered=False, limit_mb=128, requested_mb=128))
    assert (record.setbacks, record.backoff_until_s, record.guesses, record.short_mb) == (0, 0, (), 128)


# -- new code


def test_new_code_starts_from_the_old_histogram() -> None:
    """With reduced weight: a quarter of the samples, but not below the minimum."""
    old = learned(*runs(40))
    new = learned(replace(RUN, code="code-b", at_s=NOW + 50, peak_mb=60.0), record=old)
    assert new.samples == 20 + 1
    assert new.histogram.weight_at(NOW + 50) == pytest.approx(11, rel=0.01)
    assert new.code == "code-b"


@pytest.mark.parametrize(
    ("before", "after", "limit_mb"), [(400, 101, 48), (40, 21, 48), (20, 21, 48), (19, 20, 48), (18, 19, None)]
)
def test_new_code_takes_nobody_below_the_minimum(before: int, after: int, limit_mb: int | None) -> None:
    """A tuned function stays tuned, with a wider margin; a function that is not tuned loses nothing."""
    record = learned(*runs(before), replace(RUN, code="code-b", at_s=NOW + 500))
    assert (record.samples, target_mb(record), missing(record, RULES)) == (after, limit_mb, max(0, 20 - after))


def test_late_runs_of_the_old_code_change_nothing() -> None:
    """While one code replaces another, each change would take three quarters away."""
    record = learned(*runs(200), *[replace(RUN, code=f"code-{'ab'[number % 2]}") for number in range(20)])
    assert record.samples == pytest.approx(201 / 4 + 19)


def test_codes_are_few() -> None:
    """Old codes are forgotten, and count as new when they return."""
    record = learned(*[replace(RUN, code=f"{number:x}".ljust(64, "0")) for number in range(9)])
    assert len(record.codes) == CODES


# -- the number of samples, and the recommendation


def test_below_the_minimum_nothing_is_said() -> None:
    """With one less than the minimum, one is missing; then none."""
    assert (target_mb(learned(*runs(19)), RULES), missing(learned(*runs(19)), RULES)) == (None, 1)
    assert (target_mb(learned(*runs(20)), RULES), missing(learned(*runs(20)), RULES)) == (48, 0)


@pytest.mark.parametrize(
    ("count", "peak_mb", "expected"),
    [
        (20, 41.0, 48),  # with 15 %: 47.2
        (20, 41.8, 64),  # with 15 %: 48.1
        (2000, 46.0, 48),  # with 3.1 %: 47.4
        (20, 3.0, 32),  # the floor
        (20, 100.0, 128),
        (5000, 100.0, 112),
        (20, 12_000.0, 10_240),  # the ceiling
    ],
)
def test_the_target_is_the_percentile_with_its_margin_in_steps(count: int, peak_mb: float, expected: int) -> None:
    """Rounded up to 16 MB, between floor and ceiling; the margin shrinks as samples grow."""
    assert target_mb(learned(*runs(count, peak_mb)), RULES) == expected


@pytest.mark.parametrize(("count", "expected"), [(900, 304), (1100, 112)])
def test_what_is_rarer_than_the_percentile_is_left_to_a_second_run(count: int, expected: int) -> None:
    """One in a thousand: the error budget."""
    assert target_mb(learned(*runs(count, 98.0), replace(RUN, peak_mb=290.0)), RULES) == expected


def test_a_limit_rises_at_once_and_falls_after_a_while() -> None:
    """So that limits do not flap; the first one is set at once."""
    rules = replace(RULES, half_life_s=600.0, hold_s=300.0)
    record = learned(*runs(20, 200.0), rules=rules, record=Record.empty(rules))
    assert record.held_mb == 240
    risen = learned(replace(RUN, at_s=NOW + 30, peak_mb=300.0), record=record, rules=rules)
    assert (risen.held_mb, risen.held_at_s) == (352, NOW + 30)
    calm = [replace(RUN, at_s=NOW + 31 + number / 100, peak_mb=100.0) for number in range(25_000)]
    held = learned(*calm, record=risen, rules=rules)
    assert target_mb(held, rules) == 112
    assert held.held_mb == 352
    assert learned(replace(RUN, at_s=NOW + 331), record=held, rules=rules).held_mb == 112


# -- properties of all records

peaks = st.floats(0, 15_000)
drawn_samples = st.lists(
    st.builds(
        Sample,
        at_s=st.floats(NOW, NOW + 86400),
        peak_mb=st.none() | peaks,
        outcome=st.sampled_from(Outcome),
        duration_ms=st.floats(0, 1e6),
        cpu_ms=st.none() | st.floats(0, 1e6),
        limit_mb=st.integers(6, 10_240),
        requested_mb=st.integers(6, 10_240),
        code=st.sampled_from(["a", "b", "c" * 64]),
        lowered=st.booleans(),
        rerun=st.booleans(),
    ),
    max_size=60,
)


@given(drawn_samples)
def test_json_gives_the_same_record(samples: list[Sample]) -> None:
    """Exactly, including every digit."""
    record = learned(*samples)
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


@given(drawn_samples)
def test_a_record_is_bounded(samples: list[Sample]) -> None:
    """Its targets, counts and size are bounded; learning does not change an older record."""
    before = json.dumps(EMPTY.to_json())
    record = learned(*samples)
    target = target_mb(record, RULES)
    assert target is None or (RULES.floor_mb <= target <= RULES.ceiling_mb and target % RULES.step_mb == 0)
    assert 0 <= record.samples <= record.runs <= len(samples)
    assert len(json.dumps(record.to_json())) < 4096
    assert json.dumps(EMPTY.to_json()) == before


@given(st.lists(peaks, min_size=20, max_size=60))
def test_below_a_thousand_samples_no_target_is_under_the_highest_peak(drawn: list[float]) -> None:
    """One sample exceeds the error budget: only the ceiling can be lower."""
    target = target_mb(learned(*[replace(RUN, peak_mb=peak) for peak in drawn]), RULES)
    assert target is not None
    assert target >= min(RULES.ceiling_mb, max(drawn))


@given(st.lists(peaks, min_size=20, max_size=60), st.data())
def test_a_larger_peak_never_lowers_the_target(drawn: list[float], data: st.DataObject) -> None:
    """Whichever sample grows, and at any percentile at which re-runs are expensive."""
    place = data.draw(st.integers(0, len(drawn) - 1))
    rules = replace(RULES, percentile=data.draw(st.sampled_from([0.5, 0.9, 0.999])))
    requested_mb = data.draw(st.sampled_from([6, 10**7])) if rules.percentile > 0.99 else 10**7
    grown = [*drawn[:place], drawn[place] * data.draw(st.floats(1, 4)) + 0.1, *drawn[place + 1 :]]
    one, other = (learned(*[replace(RUN, peak_mb=peak) for peak in some], rules=rules) for some in (drawn, grown))
    assert target_mb(one, rules, requested_mb) <= target_mb(other, rules, requested_mb)  # type: ignore[operator]


@given(st.lists(peaks, min_size=20, max_size=60), st.sampled_from([0.5, 0.9, 0.97, 0.999]), st.integers(6, 10_240))
def test_the_error_budget_is_kept_at_any_price(drawn: list[float], percentile: float, requested_mb: int) -> None:
    """However cheap re-runs are, at least the percentile of the runs fits."""
    rules = replace(RULES, percentile=percentile, ceiling_mb=20_000)
    target = target_mb(learned(*[replace(RUN, peak_mb=peak) for peak in drawn], rules=rules), rules, requested_mb)
    assert target is not None
    assert sum(peak <= target for peak in drawn) >= percentile * len(drawn) - 1e-6


@pytest.mark.parametrize(
    ("spikes", "requested_mb", "expected"),
    [(10, 512, 304), (4, 512, 112), (4, 64_000, 304), (1, 64_000, 112)],
)
def test_room_for_rare_peaks_is_made_where_it_is_cheaper(spikes: int, requested_mb: int, expected: int) -> None:
    """This many of 1000 runs need 290 MB instead of 98: either all runs get 192 MB more, or these repeat under the requested limit.

    One in a hundred is more than the budget of 0.5 %, so there is no choice.
    """
    rules = replace(RULES, percentile=0.995)
    record = learned(*runs(1000 - spikes, 98.0), *runs(spikes, 290.0), rules=rules)
    assert target_mb(record, rules, requested_mb) == expected


@given(st.lists(peaks, min_size=20, max_size=40), st.randoms(use_true_random=False))
def test_the_order_of_runs_of_one_time_does_not_matter(drawn: list[float], shuffling: object) -> None:
    """Many hosts learn into the same record."""
    shuffled = list(drawn)
    shuffling.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (learned(*[replace(RUN, peak_mb=peak) for peak in some]) for some in (drawn, shuffled))
    assert target_mb(one, RULES) == target_mb(other, RULES)
    assert one.histogram == other.histogram


def test_a_record_of_another_version_is_none() -> None:
    """Learning starts again."""
    data = {**learned(*runs(30)).to_json(), "version": 99}
    assert Record.from_json(data, RULES) == EMPTY


def test_a_record_takes_a_new_half_life() -> None:
    """The rules in force apply from now on; stored samples keep their weight until then."""
    rules = replace(RULES, half_life_s=60.0)
    record = Record.from_json(learned(*runs(30)).to_json(), rules)
    assert (record.histogram.half_life_s, record.samples) == (60.0, 30)


def test_a_full_record_is_small() -> None:
    """Every field and every bucket in use: at most 4 KB."""
    record = EMPTY
    for number in range(4000):
        record = learn(
            record, replace(RUN, at_s=NOW + number * 77.7, peak_mb=8 * 1.05 ** (number % 161), code="c" * 64), RULES
        )
    for number in range(20):
        record = learn(
            record,
            replace(KILLED, at_s=NOW + number / 7, peak_mb=48.123 + number, code=f"{number:x}".ljust(64, "0")),
            RULES,
        )
    assert len(json.dumps(record.to_json(), separators=(",", ":"))) <= 4096


def test_rules_give_the_margin_and_the_bump() -> None:
    """The margin shrinks from the largest, at the minimum of samples, towards the smallest."""
    margins = [RULES.margin_of(count) for count in (0, 20, 80, 2000, 10**9)]
    assert margins == pytest.approx([0.15, 0.15, 0.06, 0.0312, 0.03], abs=1e-4)
