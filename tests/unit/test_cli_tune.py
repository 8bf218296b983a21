"""What `nanogrid tune` makes of its arguments, in which order it measures, and what it says of what it measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from nanogrid.cli.application import app
from nanogrid.cli.chart import check_chart, draw
from nanogrid.cli.size_runs import ID_LENGTH, SizeRuns, measured_id, sample_of
from nanogrid.cli.size_table import human_ms, print_measured, remarks, to_wire
from nanogrid.cli.tune import sizes_of
from nanogrid.errors import ConfigurationError
from nanogrid.result import ExecutionResult, Outcome, Phases, StartKind
from nanogrid.tuner.sizes import Size, SizeSample, Strategy, is_measured, summarize

MIB = 1024 * 1024
SMALL, MIDDLE, LARGE = Size(64, 1.0), Size(128, 1.0), Size(256, 1.0)
OK, OOM = Outcome.SUCCEEDED, Outcome.OUT_OF_MEMORY


def result(outcome: Outcome = OK, **fields: object) -> ExecutionResult:
    base = {
        "requestId": "r", "functionId": "f", "exitCode": 0, "stdout": "", "stderr": "", "durationMillis": 5,
        "success": outcome is OK, "outcome": outcome, "startKind": StartKind.WARM,
    }  # fmt: skip
    return ExecutionResult.model_validate({**base, **fields})


def measured_with(
    outcomes: Callable[[Size, int], Outcome], sizes: Sequence[Size] = (SMALL, MIDDLE, LARGE), runs: int = 2
) -> tuple[SizeRuns, list[Size]]:
    """A measurement whose n-th run (from 0) at a size ends like this, and the sizes in the order of all runs."""
    order: list[Size] = []

    def run(size: Size) -> ExecutionResult:
        order.append(size)
        return result(outcomes(size, order.count(size) - 1))

    measuring = SizeRuns(sizes, run)
    measuring.measure(runs, lambda number, size: None)
    return measuring, order


def test_sizes_take_turns() -> None:
    """Round by round, the smallest first; the first round does not count."""
    measuring, order = measured_with(lambda size, run: OK, sizes=(LARGE, SMALL, MIDDLE))
    assert order == [SMALL, MIDDLE, LARGE] * 3
    assert [one.runs for one in measuring.measured] == [2, 2, 2]


def test_a_size_is_left_at_its_first_failure() -> None:
    """Its other runs would tell nothing more, and cost time."""
    measuring, order = measured_with(lambda size, run: OOM if size == SMALL else OK)
    assert order == [SMALL, MIDDLE, LARGE, MIDDLE, LARGE, MIDDLE, LARGE]
    assert measuring.sizes_left == [MIDDLE, LARGE]
    assert measuring.failures[SMALL].outcome is OOM


def test_a_lost_container_is_made_again_by_a_warm_up() -> None:
    """After a run that was out of memory the next run that counts would not start warm."""
    measuring, order = measured_with(lambda size, run: OOM if (size, run) == (MIDDLE, 1) else OK)
    assert order == [SMALL, MIDDLE, LARGE, SMALL, MIDDLE, LARGE, LARGE, SMALL, LARGE]
    assert [one.runs for one in measuring.measured] == [2, 1, 2]


def test_nothing_lost_needs_no_warm_up() -> None:
    """A function that fails by itself leaves its container as it was."""
    failed = Outcome.FAILED
    _, order = measured_with(lambda size, run: failed if (size, run) == (MIDDLE, 1) else OK)
    assert order == [SMALL, MIDDLE, LARGE, SMALL, MIDDLE, LARGE, SMALL, LARGE]


def test_a_function_that_always_fails_runs_once_at_each_size() -> None:
    """And no more often than that."""
    measuring, order = measured_with(lambda size, run: Outcome.FAILED, runs=100)
    assert order == [SMALL, MIDDLE, LARGE]
    assert measuring.sizes_left == []


def test_the_time_of_a_sample_is_that_of_its_phase() -> None:
    """It is finer than whole milliseconds; those stand in where a worker does not tell."""
    assert sample_of(result(phases=Phases(run=2.718)), counted=True).time_ms == 2.718
    assert sample_of(result(), counted=True).time_ms == 5
    assert not sample_of(result(startKind=StartKind.PREWARMED), counted=True).warm


def test_a_measured_function_has_an_id_of_its_own() -> None:
    """One that a request accepts, also where the function's own is as long as it may be."""
    assert measured_id("hello") == "tune:hello"
    assert is_measured(measured_id("x" * ID_LENGTH))
    assert len(measured_id("x" * ID_LENGTH)) == ID_LENGTH


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "64,much"], "--memory: '64,much' is no list of whole numbers of MiB, such as 64,128"),
        (["--memory", ""], "--memory: '' is no list"),
        (["--memory", "64.5"], "--memory: '64.5' is no list"),
        (["--cpus", "1,"], "--cpus: '1,' is no list of numbers, such as 0.5,1"),
        (["--runs", "0"], "Invalid value for '--runs'"),
        (["--memory", ",".join(str(mb) for mb in range(64, 104)), "--cpus", "1,2"], "make 80 sizes"),
    ],
)
def test_unusable_sizes_are_explained(words: list[str], message: str) -> None:
    """With the value and what is accepted, before anything else is looked at."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["tune", "no-such-file", *words])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_every_memory_is_combined_with_every_number_of_cores() -> None:
    """Ascending, by memory first."""
    assert sizes_of([128, 64], [1, 0.5]) == [Size(64, 0.5), Size(64, 1), Size(128, 0.5), Size(128, 1)]


@pytest.mark.parametrize(
    ("name", "message"),
    [("curve.pdf", r"curve.pdf must end in \.png or \.svg"), ("no/such/curve.png", "no/such does not exist")],
)
def test_a_chart_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, message: str) -> None:
    """Before minutes of measuring."""
    with pytest.raises(ConfigurationError, match=message):
        check_chart(tmp_path / name)


def test_a_chart_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the way out."""
    check_chart(tmp_path / "curve.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # how Python marks a module that cannot be imported
    with pytest.raises(ConfigurationError, match=r"pip install 'nanogrid\[charts\]'"):
        check_chart(tmp_path / "curve.png")


def test_a_chart_shows_sizes_choices_and_failures(tmp_path: Path) -> None:
    """In letters, and in words in its metadata; a name is never taken for a formula."""
    sizes = [
        summarize(SMALL, [SizeSample(OOM, 3, counted=False)]),
        summarize(MIDDLE, [SizeSample(OK, 20), SizeSample(OK, 30)]),
        summarize(LARGE, [SizeSample(OK, 24)]),
    ]
    path = tmp_path / "curve.svg"
    draw(sizes, {Strategy.COST: MIDDLE, Strategy.SPEED: MIDDLE}, path, title="$f$ & g")
    texts = [text.strip() for text in ElementTree.parse(path).getroot().itertext() if text.strip()]
    assert {"64 MiB", "128 MiB", "256 MiB", "out of memory", "cost, speed", "$f$ & g"} <= set(texts)
    assert (
        "64 MiB, 1 CPU: out of memory; 128 MiB, 1 CPU: 25.0 ms; 256 MiB, 1 CPU: 24.0 ms; cost: 128 MiB, 1 CPU"
        in " ".join(texts)
    )


def test_runs_that_were_not_warm_and_scarce_memory_are_remarked() -> None:
    """One sentence each; nothing where there is nothing to say."""
    plain = summarize(MIDDLE, [SizeSample(OK, 20, 60 * MIB), SizeSample(OK, 20, 61 * MIB)])
    assert remarks([plain], {Strategy.COST: MIDDLE}) == []
    scarce = summarize(SMALL, [SizeSample(OK, 20, 60 * MIB), SizeSample(OK, 20, 61 * MIB, warm=False)])
    assert remarks([scarce, plain], {Strategy.COST: SMALL}) == [
        "1 of 4 runs did not start in a warm container; their times do not count where others were warm",
        "64 MiB, 1 CPU leaves 3 MiB over the largest peak: a larger input may not fit",
    ]
    assert remarks([scarce, plain], {Strategy.COST: MIDDLE})[1:] == []


def test_json_tells_one_run() -> None:
    """GB-seconds of one run, times in milliseconds, null where there is nothing."""
    sizes = [
        summarize(SMALL, [SizeSample(OOM, 3, 64 * MIB, counted=False)]),
        summarize(LARGE, [SizeSample(OK, 20, 61 * MIB, 18)]),
    ]
    wire = to_wire("f", sizes, {Strategy.COST: LARGE}, None)
    assert wire["sizes"][0]["outcome"] == "OUT_OF_MEMORY"
    assert (wire["sizes"][0]["timeMs"], wire["sizes"][0]["gbSeconds"]) == (None, None)
    assert wire["sizes"][1]["gbSeconds"] == pytest.approx(0.005)
    assert wire["choices"] == {"cost": {"memoryMb": 256, "cpus": 1.0}, "speed": None, "balanced": None}


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([OOM, OOM, OOM], "(out of memory): give larger sizes with --memory"),
        ([OOM, OOM, Outcome.TIMED_OUT], "(out of memory, timed out): give it more time with --timeout-ms"),
        ([OOM, Outcome.FAILED, OOM], "(out of memory, failed): its stderr ends as above"),
    ],
)
def test_without_a_choice_it_says_why(
    outcomes: list[Outcome], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What became of the sizes, and what to do."""
    measuring, _ = measured_with(lambda size, run: outcomes[[SMALL, MIDDLE, LARGE].index(size)])
    print_measured(measuring, {}, table=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().splitlines()[-1] == f"error: the function succeeded at no size {message}"


@pytest.mark.parametrize(
    ("time_ms", "text"), [(0.04, "0.0 ms"), (2.71, "2.7 ms"), (103.4, "103 ms"), (9999, "9999 ms"), (12_345, "12.3 s")]
)
def test_times_are_short(time_ms: float, text: str) -> None:
    """No more digits than were measured."""
    assert human_ms(time_ms) == text
