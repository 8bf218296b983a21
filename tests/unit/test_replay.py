"""The replay: what a synthetic day looks like, how the trace is read, what is counted, and that `make replay` prints it."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.replay.__main__ import main
from benchmarks.replay.day import MOST_RUNS, Function, Run
from benchmarks.replay.hindsight import BUDGET, best_of_all, best_of_each, curve
from benchmarks.replay.outcome import NAMES, outcome
from benchmarks.replay.policies import LastPeak, Policy, Requested, Tuner, Vpa
from benchmarks.replay.score import Score, held_fixed, replayed
from benchmarks.replay.several import ReplayDay, replay
from benchmarks.replay.synthetic import KINDS, day, rate
from benchmarks.replay.trace import DURATION_POINTS, MEMORY_POINTS, TraceError, days_of, read_day
from nanogrid.result import Outcome
from nanogrid.tuner.record import Sample
from nanogrid.tuner.rules import Rules

RULES = Rules()


def function(*peaks: float, requested_mb: int = 512, duration_ms: float = 1024.0, apart_s: float = 60.0) -> Function:
    """A function with these peaks, its runs so far apart. One run of 1024 ms under 1000 MB is a GB-second."""
    runs = [Run(number * apart_s, peak, duration_ms, "v0") for number, peak in enumerate(peaks)]
    return Function("f", "stable", requested_mb, 1.0, runs)


class Always:
    """A policy with one limit, which keeps what it learns."""

    def __init__(self, limit_mb: int) -> None:
        self.limit = limit_mb
        self.samples: list[Sample] = []

    def limit_mb(self, requested_mb: int, code: str, now_s: float) -> int:
        """The same for all."""
        return min(requested_mb, self.limit)

    def learn(self, sample: Sample) -> None:
        """It is kept."""
        self.samples.append(sample)


# -- a synthetic day


@pytest.fixture(scope="module")
def functions() -> Sequence[Function]:
    """A day, large enough for shares."""
    return day(7, 200)


def test_rates_have_the_shape_of_the_trace() -> None:
    """Eight orders of magnitude; 45 % at most hourly, 81 % at most once a minute."""
    assert rate(1.0) / rate(0.0) == pytest.approx(1e8)
    assert rate(0.45) == pytest.approx(24)
    assert rate(0.81) == pytest.approx(1440)
    rates = [rate(place / 1000) for place in range(1001)]
    assert rates == sorted(rates)


def test_durations_and_memory_have_the_shape_of_the_trace(functions: Sequence[Function]) -> None:
    """Half of the functions take less than a second; half of them need up to 170 MB and nine of ten up to 400."""
    means = [statistics.fmean(run.duration_ms for run in one.runs) for one in functions]
    assert 0.45 < sum(mean < 1000 for mean in means) / len(means) < 0.65
    highest = [max(run.peak_mb for run in one.runs) for one in functions if one.kind != "spiky"]
    assert sum(peak <= 170 for peak in highest) / len(highest) == pytest.approx(0.5, abs=0.12)
    assert sum(peak <= 400 for peak in highest) / len(highest) == pytest.approx(0.9, abs=0.06)


def test_nobody_asks_for_less_than_is_needed(functions: Sequence[Function]) -> None:
    """Without a tuner no run of the day is out of memory."""
    assert all(run.peak_mb <= one.requested_mb for one in functions for run in one.runs)


def test_frequent_functions_are_thinned(functions: Sequence[Function]) -> None:
    """And their runs count as often as they stand for."""
    assert max(len(one.runs) for one in functions) < MOST_RUNS * 1.2
    assert max(len(one.runs) * one.weight for one in functions) > 1e6
    assert {one.kind for one in functions} == set(KINDS)
    for one in functions:
        starts = [run.at_s for run in one.runs]
        assert starts == sorted(starts)
        assert 0 <= starts[0] <= starts[-1] < 86400


def test_a_seed_is_a_day() -> None:
    """The same one twice, another one for another seed."""
    assert day(3, 20) == day(3, 20)
    assert day(3, 20) != day(4, 20)


# -- what is counted


def test_slack_is_what_was_held_and_not_used() -> None:
    """512 MB held, 128 used: three quarters."""
    score = replayed(function(128, 128), Requested())
    assert score.held_gb_s == pytest.approx(2 * 512 * 1024 / 1024 / 1000)
    assert score.slack == pytest.approx(0.75)
    assert score.rerun_share == 0


def test_a_run_that_is_out_of_memory_runs_again_and_its_first_attempt_is_waste() -> None:
    """Under 100 MB it comes to half of 200, in half of the time; then it has what it asks for."""
    policy = Always(100)
    score = replayed(function(200, 50), policy)
    assert score.held_gb_s * 1000 == pytest.approx(100 / 2 + 512 + 100)
    assert score.used_gb_s * 1000 == pytest.approx(200 + 50)
    assert (score.runs, score.reruns) == (2, 1)
    killed, again = policy.samples
    assert (killed.outcome, killed.peak_mb, killed.limit_mb, killed.lowered) == (Outcome.OUT_OF_MEMORY, 100, 100, True)
    assert (again.outcome, again.peak_mb, again.limit_mb, again.lowered) == (Outcome.SUCCEEDED, 200, 512, False)
    assert (killed.rerun, again.rerun) == (False, True)
    assert again.at_s - killed.at_s == pytest.approx(1.024)


def test_runs_that_overlap_know_nothing_of_each_other() -> None:
    """A policy hears of a run when it has ended."""
    together = function(100, 100, 100, duration_ms=10_000, apart_s=1)
    assert replayed(together, LastPeak()).held_gb_s == pytest.approx(3 * 512 * 10_000 / 1024 / 1000)
    apart = function(100, 100, 100, duration_ms=10_000, apart_s=11)
    assert replayed(apart, LastPeak()).held_gb_s == pytest.approx((512 + 140 + 140) * 10_000 / 1024 / 1000)


def test_what_is_unused_has_causes(functions: Sequence[Function]) -> None:
    """They add up to all of the slack."""
    score = outcome(functions[:90], RULES).once["NanoGrid's tuner"]
    assert sum(score.unused_gb_s.values()) == pytest.approx(score.held_gb_s - score.used_gb_s)


@pytest.mark.parametrize(
    ("policy", "after"),
    [(Requested(), 512), (LastPeak(), 140), (Vpa(), 117), (Vpa(250), 250), (Tuner(RULES), 512)],
)
def test_what_each_policy_does_after_one_run(policy: Policy, after: int) -> None:
    """Of 100 MB: VPA's rule takes the edge of the bucket, 101.1 MB, and 15 % more; the tuner waits."""
    assert policy.limit_mb(512, "v0", 0.0) == 512
    policy.learn(Sample(1.0, 100.0, Outcome.SUCCEEDED, 100.0, None, 512, 512, "v0", lowered=False))
    assert policy.limit_mb(512, "v0", 2.0) == after


def test_the_tuner_is_the_real_one() -> None:
    """Nine runs are too few; then it lowers, backs off after a mistake, and has learned."""
    tuner = Tuner(RULES)
    score = replayed(function(*[40.0] * 40, 200.0, *[40.0] * 10), tuner)
    assert score.reruns == 1
    assert tuner.record.setbacks == 1
    assert tuner.limit_mb(512, "v0", 9000.0) == 208


# -- the bounds


def test_a_fixed_limit_is_the_same_either_way(functions: Sequence[Function]) -> None:
    """With and without somebody who is told of every run."""
    for one in functions[60:120:10]:
        for limit_mb in (64, 160, 400):
            told, alone = replayed(one, Always(limit_mb)), held_fixed(one, limit_mb)
            assert (told.runs, told.reruns) == (alone.runs, alone.reruns)
            assert told.held_gb_s == pytest.approx(alone.held_gb_s)
            assert told.used_gb_s == pytest.approx(alone.used_gb_s)


def test_the_best_fixed_limit_of_a_function_is_the_smallest_that_a_thousandth_exceeds() -> None:
    """Of 2000 runs two may exceed it; with three, it makes room for them."""
    assert best_of_each(function(*[90.0] * 1998, 300.0, 300.0), RULES).reruns == 2
    assert best_of_each(function(*[90.0] * 1997, 300.0, 300.0, 300.0), RULES).reruns == 0


def test_the_best_of_all_spends_the_budget_where_it_saves_most() -> None:
    """One spike in 200 runs is too many for the function alone, but not among all; a long function's is worth more."""
    spiky = [90.0] * 199 + [300.0]
    short, long = function(*spiky, duration_ms=10), function(*spiky, duration_ms=10_000)
    others = function(*[90.0] * 900)
    curves = [curve(one, RULES) for one in (short, long, others)]
    assert [best_of_each(one, RULES).reruns for one in (short, long, others)] == [0, 0, 0]
    best = best_of_all(curves, [1, 1, 1])
    assert best.reruns == 1
    assert best.rerun_share <= BUDGET
    cheaper = sum(
        (min(one, key=lambda score: score.held_gb_s).held_gb_s for one in curves[1:]), curves[0][-1].held_gb_s
    )
    assert best.held_gb_s == pytest.approx(cheaper)


# -- the real trace's files


def write(path: Path, head: Sequence[str], *rows: Sequence[object]) -> None:
    """A CSV file of the trace."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Day 3 of a trace: two functions of one application, one of another, one without memory, one without durations."""
    memory = [column for _, column in MEMORY_POINTS]
    durations = [column for _, column in DURATION_POINTS]
    write(
        tmp_path / "app_memory_percentiles.anon.d03.csv",
        ["HashOwner", "HashApp", "SampleCount", "AverageAllocatedMb", *memory],
        ["o1", "a1", 100, 120, 100, 105, 110, 120, 130, 140, 150, 160],
        ["o1", "a2", 100, 300, 300, 300, 300, 300, 300, 300, 300, 300],
    )
    write(
        tmp_path / "function_durations_percentiles.anon.d03.csv",
        ["HashOwner", "HashApp", "HashFunction", "Average", "Count", "Minimum", "Maximum", *durations],
        ["o1", "a1", "f1", 100, 10, 50, 900, 50, 60, 80, 100, 120, 800, 900],
        ["o1", "a1", "f2", 9, 10, 9, 9, 9, 9, 9, 9, 9, 9, 9],
        ["o1", "a2", "f3", 2000, 10, 2000, 2000, *[2000] * 7],
        ["o2", "a9", "f4", 1, 1, 1, 1, *[1] * 7],
    )
    minutes = [str(minute) for minute in range(1, 1441)]
    write(
        tmp_path / "invocations_per_function_md.anon.d03.csv",
        ["HashOwner", "HashApp", "HashFunction", "Trigger", *minutes],
        ["o1", "a1", "f1", "http", *[1 if minute % 10 == 0 else 0 for minute in range(1440)]],
        ["o1", "a1", "f2", "timer", *[10] * 1440],
        ["o1", "a2", "f3", "queue", 2, *[0] * 1439],
        ["o2", "a9", "f4", "http", *[1] * 1440],
        ["o1", "a1", "f5", "http", *[1] * 1440],
    )
    return tmp_path


def test_a_day_of_the_trace_becomes_functions(trace: Path) -> None:
    """Those of which all three files know; invocations in their minutes, peaks and durations from the percentiles."""
    assert days_of(trace) == [3]
    found = {one.name: one for one in read_day(trace, 3, seed=1, count=10)}
    assert set(found) == {"a1/f1", "a1/f2", "a2/f3"}
    first = found["a1/f1"]
    assert (len(first.runs), first.weight, first.kind) == (144, 1.0, "http")
    assert all(run.at_s // 60 % 10 == 0 for run in first.runs)
    assert 100 <= min(run.peak_mb for run in first.runs) <= max(run.peak_mb for run in first.runs) <= 160
    assert statistics.median(run.peak_mb for run in first.runs) == pytest.approx(120, abs=5)
    assert statistics.median(run.duration_ms for run in first.runs) == pytest.approx(100, abs=15)
    assert [(run.peak_mb, run.duration_ms) for run in found["a2/f3"].runs] == [(300, 2000)] * 2
    assert found["a1/f2"].weight == 14_400 / MOST_RUNS
    assert len(found["a1/f2"].runs) == pytest.approx(MOST_RUNS, rel=0.1)


def test_a_part_of_the_trace_is_drawn_by_seed(trace: Path) -> None:
    """Two of three, the same ones again for the same seed."""
    drawn = [[one.name for one in read_day(trace, 3, seed, 2)] for seed in (1, 1, 2, 3, 4, 5)]
    assert drawn[0] == drawn[1]
    assert all(len(set(names)) == 2 for names in drawn)
    assert len({tuple(sorted(names)) for names in drawn}) > 1


def test_files_that_are_no_trace_are_told(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Which are missing, or which column."""
    with pytest.raises(TraceError, match="has no day of the trace"):
        days_of(tmp_path_factory.mktemp("empty"))
    write(trace / "app_memory_percentiles.anon.d03.csv", ["Owner", "App"], ["o1", "a1"])
    with pytest.raises(TraceError, match="no column 'HashOwner': its columns are Owner, App"):
        read_day(trace, 3, 1, 10)
    write(trace / "app_memory_percentiles.anon.d03.csv", ["HashOwner", "HashApp"], ["o1", "a1"])
    with pytest.raises(TraceError, match="no number in column AverageAllocatedMb_pct1"):
        read_day(trace, 3, 1, 10)


# -- the command


def test_make_replay_prints_the_table_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every policy, what is left over, every goal with its verdict; a table, a PNG and an SVG are written."""
    assert main(["--seeds", "7", "--functions", "20", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in NAMES)
    assert all(f"| {kind} |" in printed for kind in ("stable", "noisy"))
    assert "too few runs so far" in printed
    assert printed.count("MET") == 3
    table, png, svg = (next(tmp_path.glob(f"replay-*.{ending}")) for ending in ("md", "png", "svg"))
    assert "| NanoGrid's tuner |" in table.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def test_make_replay_reads_a_trace(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its kinds are the triggers. A folder without one is told in a sentence."""
    assert main(["--trace", str(trace), "--results", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    assert "| day 3 |" in printed
    assert "| timer |" in printed
    assert main(["--trace", str(tmp_path / "results")]) == 2
    assert "has no day of the trace" in capsys.readouterr().err


def test_days_are_replayed_at_the_same_time_and_put_together() -> None:
    """In processes of their own; sums, so that a day with more runs counts for more."""
    days = replay([ReplayDay(number, number, 6, None) for number in (1, 2)])
    assert days[0] == replay([ReplayDay(1, 1, 6, None)])[0]
    total = Score()
    for one in days:
        total.add(one.once["VPA's rule"])
    days[0].add(days[1])
    assert days[0].once["VPA's rule"] == total
