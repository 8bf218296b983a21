"""The decaying histogram: buckets, decay, late samples, constant space, JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.tuner.histogram import FIRST_MB, LAST, RATIO, Histogram, edge_mb, number_of

DAY = 86400.0
NOW = 1_700_000_000.0

values = st.floats(0, 20_000, allow_nan=False)
ages = st.floats(0, 3 * DAY)
samples = st.lists(st.tuples(values, ages), min_size=1, max_size=60)


def filled(*peaks: float, at_s: float = NOW, half_life_s: float = DAY) -> Histogram:
    """Return a histogram of these values, all with the same time."""
    histogram = Histogram(half_life_s)
    for peak in peaks:
        histogram = histogram.add(peak, at_s)
    return histogram


def of(drawn: list[tuple[float, float]]) -> Histogram:
    """Return a histogram of values with their ages."""
    histogram = Histogram(DAY)
    for value, age in drawn:
        histogram = histogram.add(value, NOW - age)
    return histogram


@pytest.mark.parametrize(
    ("value", "index"), [(0, 0), (7.9, 0), (8.0, 0), (8.01, 1), (8.4, 1), (8.41, 2), (100, 52), (1e6, LAST)]
)
def test_buckets_grow_by_a_twentieth(value: float, index: int) -> None:
    """The first bucket ends at 8 MB, each further edge is 5 % higher, and an edge belongs to the bucket below."""
    assert number_of(value) == index
    assert value <= edge_mb(index) or index == LAST
    assert index == 0 or value > edge_mb(index - 1)


def test_every_edge_is_in_its_own_bucket() -> None:
    """However it was rounded."""
    for index in range(LAST + 1):
        assert number_of(edge_mb(index)) == index
        assert edge_mb(index) == pytest.approx(FIRST_MB * RATIO**index)


@pytest.mark.parametrize(
    ("q", "expected"), [(0.0, 10.0), (0.5, 10.0), (0.74, 10.0), (0.76, 20.0), (0.9, 20.0), (0.95, 40.0), (1.0, 40.0)]
)
def test_a_percentile_is_the_edge_up_to_which_so_much_lies(q: float, expected: float) -> None:
    """15 of 20 samples are 10 MB, three are 20, two are 40."""
    histogram = filled(*[10.0] * 15, *[20.0] * 3, *[40.0] * 2)
    assert histogram.percentile(q) == pytest.approx(edge_mb(number_of(expected)))


def test_without_samples_there_is_no_percentile() -> None:
    """None instead of 0: a recommendation of zero would be wrong."""
    empty = Histogram(DAY)
    assert not empty
    assert empty.percentile(0.9) is None
    assert empty.limits(0.9) == []
    assert empty.highest_mb is None
    assert empty.total == 0
    assert empty.remove(10, NOW) == empty


def test_limits_are_told_with_what_lies_above_them() -> None:
    """The largest sample itself, rounded up to a tenth, because nothing larger was seen; then edges, down to the share."""
    histogram = filled(*[100.01] * 96, *[200] * 3, 300.01)
    edges = [edge_mb(number_of(200)), edge_mb(number_of(100.01))]
    assert histogram.limits(0.9) == [(300.1, 0), (edges[0], pytest.approx(0.01)), (edges[1], pytest.approx(0.04))]
    assert histogram.limits(0.99) == histogram.limits(0.9)[:2]
    assert histogram.limits(0.995) == [(300.1, 0)]


def test_above_the_last_edge_the_largest_sample_counts() -> None:
    """The last bucket has no upper end, so its edge is meaningless."""
    assert filled(50_000).percentile(1) == 50_000


def test_a_sample_weighs_half_after_a_half_life() -> None:
    """Two old samples are worth one new one, and the sum is the worth of all in new samples."""
    histogram = filled(10, 10, at_s=NOW - DAY).add(50, NOW)
    assert histogram.weight_at(NOW) == pytest.approx(2)
    assert histogram.percentile(0.5) == pytest.approx(edge_mb(number_of(10)))
    assert histogram.percentile(0.51) == pytest.approx(edge_mb(number_of(50)))
    assert histogram.weight_at(NOW + DAY) == pytest.approx(1)


def test_old_samples_vanish() -> None:
    """After many half-lives a thousand runs weigh less than one."""
    histogram = filled(*[500] * 1000, at_s=NOW - 30 * DAY).add(20, NOW)
    assert histogram.highest_mb == 20


@pytest.mark.parametrize("late_s", [0.0, 3600.0, 5 * DAY, 60 * DAY, 1e9])
def test_a_late_sample_weighs_what_its_age_says(late_s: float) -> None:
    """Samples may come in any order; one that is far too old weighs nothing."""
    in_turn = filled(100, at_s=NOW - late_s).add(20, NOW)
    turned = filled(20).add(100, NOW - late_s)
    assert turned.percentile(0.99) == in_turn.percentile(0.99)
    assert turned.weight_at(NOW) == pytest.approx(in_turn.weight_at(NOW), abs=0.01)


def test_years_of_samples_do_not_overflow() -> None:
    """The reference moves along, so weights stay small numbers."""
    histogram = Histogram(60.0)
    for minute in range(0, 5_000_000, 997):
        histogram = histogram.add(64, NOW + minute * 60)
    assert 1 <= histogram.total < 1000
    assert math.isfinite(histogram.weight_at(0))


def test_a_sample_can_be_taken_back() -> None:
    """It leaves no residue, although other samples came in between and weights were rounded."""
    before = filled(40, 41, 60, at_s=NOW - DAY / 3)
    with_guess = before.add(148, NOW - 1000.3)
    assert with_guess.highest_mb == 148
    assert with_guess.add(55, NOW).remove(148, NOW - 1000.3) == before.add(55, NOW)


def test_taking_back_leaves_the_others_of_its_bucket() -> None:
    """Only one of them is removed."""
    assert filled(100, 100).remove(100, NOW).total == 1


def test_scaled_samples_count_less() -> None:
    """The shape is the same, and one new sample is worth four old ones."""
    scaled = filled(*[100] * 8).scaled(0.25)
    assert scaled.total == 2
    assert scaled.percentile(0.9) == filled(100).percentile(0.9)
    assert scaled.add(200, NOW).percentile(0.67) == pytest.approx(edge_mb(number_of(200)))


def test_histograms_of_different_half_lives_are_not_merged() -> None:
    """Their weights are not comparable."""
    with pytest.raises(ValueError, match=r"half-lives of 60\.0 and 86400\.0 s cannot be merged"):
        filled(1, half_life_s=60.0).merge(filled(1))


@given(samples, samples)
def test_merging_is_adding_the_samples_of_both(
    one: list[tuple[float, float]], other: list[tuple[float, float]]
) -> None:
    """In either order."""
    merged, added = of(one).merge(of(other)), of(one + other)
    assert merged.weight_at(NOW) == pytest.approx(added.weight_at(NOW), rel=1e-3)
    assert merged.highest_mb == of(other).merge(of(one)).highest_mb == added.highest_mb
    assert [bucket.number for bucket in merged.buckets] == [bucket.number for bucket in added.buckets]
    assert of(one).merge(Histogram(DAY)) == Histogram(DAY).merge(of(one)) == of(one)


@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(drawn: list[tuple[float, float]], shuffling: object) -> None:
    """Each sample carries its time, so many hosts can add to one histogram."""
    shuffled = list(drawn)
    shuffling.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = of(drawn), of(shuffled)
    assert one.highest_mb == other.highest_mb
    assert one.weight_at(NOW) == pytest.approx(other.weight_at(NOW), rel=1e-3)
    for index in {bucket.number for bucket in one.buckets}:
        below = [sum(b.weight for b in h.buckets if b.number <= index) / h.total for h in (one, other)]
        assert below[0] == pytest.approx(below[1], rel=1e-3)


@given(samples, st.floats(0, 1), st.floats(0, 1))
def test_percentiles_rise_and_are_bounded(drawn: list[tuple[float, float]], one: float, other: float) -> None:
    """A larger share never needs less; the full share is at or below the edge of the largest sample's bucket."""
    histogram = of(drawn)
    low, high = sorted((one, other))
    largest = max(value for value, _ in drawn)
    assert histogram.percentile(low) <= histogram.percentile(high)  # type: ignore[operator]
    limits = histogram.limits(high)
    assert limits == sorted(limits, reverse=True)
    assert all(above <= 1 - high + 1e-6 for _, above in limits)
    assert limits[-1][0] <= histogram.percentile(high)  # type: ignore[operator]
    assert largest <= histogram.percentile(1) <= max(FIRST_MB, largest * RATIO + 0.2)  # type: ignore[operator]
    assert limits[0][0] == pytest.approx(largest, abs=0.1001)
    assert limits[0][1] == 0


@given(samples, st.data())
def test_a_larger_sample_never_lowers_a_percentile(drawn: list[tuple[float, float]], data: st.DataObject) -> None:
    """Whichever sample grows."""
    place = data.draw(st.integers(0, len(drawn) - 1))
    value, age = drawn[place]
    grown = [*drawn[:place], (value * data.draw(st.floats(1, 5)) + 0.1, age), *drawn[place + 1 :]]
    for q in (0.5, 0.9, 0.999):
        assert of(grown).percentile(q) >= of(drawn).percentile(q)  # type: ignore[operator]
        assert of(grown).limits(q)[-1][0] >= of(drawn).limits(q)[-1][0]


@given(samples)
def test_json_gives_the_same_histogram(drawn: list[tuple[float, float]]) -> None:
    """Exactly, including every digit."""
    histogram = of(drawn)
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


@pytest.mark.parametrize("data", [{}, {"halfLifeS": 1, "referenceS": 0, "bucket": [1], "weight": [], "highestMb": []}])
def test_what_is_no_histogram_is_an_error(data: dict[str, object]) -> None:
    """Columns that are missing or of different lengths."""
    with pytest.raises((KeyError, ValueError)):
        Histogram.from_json(data)


def test_space_is_constant() -> None:
    """Samples in every bucket, at odd times and in large numbers: less than 4 KB, and the high percentiles stay."""
    histogram = Histogram(DAY)
    for turn in range(30):
        for index in range(LAST + 1):
            histogram = histogram.add(edge_mb(index) - 0.01, NOW + turn * 7777.7 + index * 13.3, weight=997.3)
    assert len(json.dumps(histogram.to_json(), separators=(",", ":"))) <= 3600
    assert histogram.percentile(0.5) == pytest.approx(edge_mb(LAST // 2), rel=0.11)
    assert histogram.weight_at(NOW) == pytest.approx(
        sum(997.3 * 2 ** ((turn * 7777.7 + index * 13.3) / DAY) for turn in range(30) for index in range(LAST + 1)),
        rel=1e-6,
    )
