"""What the benchmark computes and prints: percentiles, ratios, growth, verdicts, tables. It measures nothing here."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.children import in_child, in_children
from benchmarks.figures import (
    DASH,
    TIMES,
    Goal,
    Line,
    Measured,
    Samples,
    all_met,
    growth,
    p95_ratio,
    percentile,
    ratio,
    steady,
)
from benchmarks.host import environment
from benchmarks.package_index import fetch, serving
from benchmarks.picture import draw
from benchmarks.programs import COMPILED, HELLO, IMPORTS, STDLIB
from benchmarks.rows import ROWS
from benchmarks.table import block, document, goal_text, markdown, number, with_unit
from benchmarks.turns import in_turn


def samples(*values: float, name: str = "warm", unit: str = "ms") -> Samples:
    """Samples of some variant."""
    return Samples(name, unit, values)


def measured(*lines: Line) -> Measured:
    """A row with these lines."""
    return Measured("hello", "hello world", (samples(1, 2, 3), samples(10, 20, 30, name="bare")), lines, ("two hosts",))


MET = Line("median of bare", 0.1, TIMES, Goal(0.2))
NOT_MET = Line("throughput", 2.4, TIMES, Goal(2.5, at_least=True))


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([5.0], 0.95, 5.0), ([1.0, 2.0], 0.5, 1.5), ([3.0, 1.0, 2.0], 1.0, 3.0), (list(range(101)), 0.95, 95.0)],
)
def test_a_percentile_lies_between_neighbours(values: list[float], share: float, expected: float) -> None:
    """A percentile is the value at that share of the sorted values, linear between two of them."""
    assert percentile(values, share) == pytest.approx(expected)


def test_there_is_no_percentile_of_nothing() -> None:
    """No values are an error that says so."""
    with pytest.raises(ValueError, match="measure at least once"):
        percentile([], 0.5)


def test_ratios_are_of_medians_and_the_p95_is_held_against_the_baselines_median() -> None:
    """A p95 is compared with the baseline's median, which is stricter than with its p95."""
    warm, bare = samples(1, 2, 3), samples(10, 20, 90, name="bare")
    assert ratio("median", warm, bare).figure == pytest.approx(0.1)
    assert p95_ratio("p95", warm, bare).figure == pytest.approx(2.9 / 20)


@pytest.mark.parametrize(
    ("goal", "figure", "met"),
    [
        (Goal(0.2), 0.2, True),
        (Goal(0.2), 0.2001, False),
        (Goal(15, at_least=True), 15, True),
        (Goal(15, at_least=True), 14.9, False),
    ],
)
def test_a_limit_itself_meets_its_goal(goal: Goal, figure: float, met: bool) -> None:
    """A goal is met at its limit and on its good side, and not beyond."""
    assert goal.is_met(figure) is met


@pytest.mark.parametrize(
    ("line", "verdict"), [(MET, "MET"), (NOT_MET, "NOT MET"), (Line("for information", 3, "ms"), DASH)]
)
def test_each_line_has_a_verdict(line: Line, verdict: str) -> None:
    """A line with a goal is MET or NOT MET; one without has a dash."""
    assert line.verdict == verdict


def test_one_goal_that_is_not_met_fails_the_whole() -> None:
    """All goals are met only where no line says NOT MET; lines without a goal do not count."""
    assert all_met([measured(MET, Line("for information", 3, "ms"))])
    assert not all_met([measured(MET), measured(NOT_MET)])


@pytest.mark.parametrize(
    ("values", "grown"),
    [
        ([9, 9, 5, 5, 5, 5, 5, 5, 5, 5], 0),
        ([0, 0, 1, 2, 3, 4, 5, 6, 7, 8], 6),
        ([3, 3, 3, 9, 3, 3, 3, 3, 9, 3], 0),
    ],
    ids=["warm-up does not count", "a slope shows", "single peaks do not"],
)
def test_growth_compares_the_time_after_the_warm_up_with_the_end(values: list[float], grown: float) -> None:
    """Growth is the median of the last third minus that of the first third, without the first fifth of all samples."""
    assert growth(values) == pytest.approx(grown)


def test_a_longer_warm_up_leaves_a_later_step_out() -> None:
    """The share of samples that is warm-up can be chosen where things settle late."""
    values = [1, 1, 1, 1, 9, 9, 9, 9, 9, 9]
    assert growth(values) == 8
    assert growth(values, warm_up=0.5) == 0


def test_growth_needs_samples() -> None:
    """Fewer than five samples tell nothing of growth, and say so."""
    with pytest.raises(ValueError, match="at least 5"):
        growth([1, 2, 3, 4])


def test_a_figure_that_grows_more_than_noise_fails() -> None:
    """Growth is held against a tolerance; shrinking is no failure."""
    assert steady("keys", [5] * 10, "", tolerance=0).verdict == "MET"
    assert steady("keys", list(range(10)), "", tolerance=0).verdict == "NOT MET"
    assert steady("keys", list(range(10, 0, -1)), "", tolerance=0).verdict == "MET"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00001, "0"), (0.1234, "0.123"), (0.2, "0.2"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"), (5, "5")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """Numbers are shown with three significant digits and never with an exponent."""
    assert number(value) == text


def test_units_follow_their_numbers() -> None:
    """A ratio carries its sign close, other units stand apart, and a bare count has none."""
    assert (with_unit(0.15, TIMES), with_unit(1.5, "ms"), with_unit(100, "")) == (f"0.15{TIMES}", "1.5 ms", "100")
    assert goal_text(Goal(15, at_least=True), TIMES) == f"≥ 15{TIMES}"
    assert goal_text(None, "ms") == DASH


def test_a_block_shows_variants_lines_and_notes() -> None:
    """A row on the terminal has a line per variant, a line per figure with its goal and verdict, and its notes."""
    assert block(measured(MET, NOT_MET)).splitlines() == [
        "hello: hello world",
        "    warm  n=3     median         2 ms  p95       2.9 ms",
        "    bare  n=3     median        20 ms  p95        29 ms",
        f"  MET      median of bare: 0.1{TIMES}  (goal ≤ 0.2{TIMES})",
        f"  NOT MET  throughput: 2.4{TIMES}  (goal ≥ 2.5{TIMES})",
        "  note: two hosts",
    ]


def test_the_markdown_table_has_a_line_per_figure() -> None:
    """The table for the documents names row, figure, goal and verdict."""
    assert markdown([measured(MET, NOT_MET)]).splitlines()[2:] == [
        f"| hello: median of bare | 0.1{TIMES} | ≤ 0.2{TIMES} | MET |",
        f"| hello: throughput | 2.4{TIMES} | ≥ 2.5{TIMES} | NOT MET |",
    ]


def test_the_document_keeps_raw_samples_and_verdicts() -> None:
    """The JSON holds the machine, and each row with all its samples, medians and verdicts."""
    data = json.loads(json.dumps(document([measured(MET)], {"cores": 2})))
    row = data["rows"][0]
    assert data["machine"] == {"cores": 2}
    assert row["samples"][0]["values"] == [1, 2, 3]
    assert (row["samples"][0]["median"], row["lines"][0]["verdict"]) == (2, "MET")


def test_variants_take_turns_in_a_rotating_order() -> None:
    """Each round begins with another variant, warm-up rounds do not count, and own times are kept."""
    order: list[str] = []

    def variant(name: str, took_ms: float | None) -> Callable[[], float | None]:
        def run() -> float | None:
            order.append(name)
            return took_ms

        return run

    found = in_turn("row", {"a": variant("a", 7.0), "b": variant("b", None)}, rounds=2, warm_up=1)
    assert "".join(order) == "baabba"
    assert found["a"].values == (7.0, 7.0)
    assert all(0 <= value < 1000 for value in found["b"].values)


def test_a_child_answers_or_fails_the_row() -> None:
    """What a child returns comes back in order; what it raises is raised with its own traceback."""
    assert in_children([lambda: 1, lambda: 2]) == [1, 2]

    def fail() -> None:
        raise ValueError("out of order")

    with pytest.raises(RuntimeError, match="ValueError: out of order"):
        in_child(fail)


def test_a_bare_run_gets_no_variable_that_changes_how_python_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHON*, LD_* and settings of this project are taken from a bare run's environment; others stay."""
    for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "LD_PRELOAD", "NANOGRID_DATA_DIR", "KEPT"):
        monkeypatch.setenv(name, "1")
    assert {name for name in environment() if name.startswith(("PYTHON", "LD_", "NANOGRID_"))} == set()
    assert environment()["KEPT"] == "1"


def test_variations_are_other_code_that_does_the_same() -> None:
    """A variation differs from its program in a comment alone."""
    assert HELLO.variation(1).files != HELLO.variation(2).files
    assert HELLO.variation(1).prints == HELLO.prints
    assert COMPILED.variation(1).files["run.sh"] == COMPILED.files["run.sh"]
    assert len(STDLIB) == 11
    assert all(f"import {name}\n" in IMPORTS.files["main.py"] for name in STDLIB)


def test_the_index_serves_wheels_by_name(tmp_path: Path) -> None:
    """The simple index lists a package's wheels, serves their bytes, and knows no others."""
    (tmp_path / "tiny-1.0-py3-none-any.whl").write_bytes(b"wheel")
    (tmp_path / "Not_So.Tiny-1.0-py3-none-any.whl").write_bytes(b"wheel")
    with serving(tmp_path) as url:
        with urllib.request.urlopen(f"{url}/not-so-tiny/") as page:
            assert b'href="/Not_So.Tiny-1.0-py3-none-any.whl"' in page.read()
        with urllib.request.urlopen(f"{url}/tiny/") as page:
            assert b'href="/tiny-1.0-py3-none-any.whl"' in page.read()
        with urllib.request.urlopen(f"{url.removesuffix('/simple')}/tiny-1.0-py3-none-any.whl") as file:
            assert file.read() == b"wheel"
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(f"{url}/other/")
        missing.value.close()
    assert missing.value.code == 404


def test_wheels_that_are_there_are_not_downloaded_again(tmp_path: Path) -> None:
    """A release whose wheel is in the folder is found by its name in any spelling. Pip would fail for one that does not exist."""
    (tmp_path / "Not_So.Tiny-1.0-py3-none-any.whl").write_bytes(b"wheel")
    fetch(["not-so_tiny==1.0"], "3.9", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Not_So.Tiny-1.0-py3-none-any.whl"]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    """Repeated times become strips with boxes, and figures over time become curves, in one PNG."""
    curves = Measured("endurance", "many runs", (samples(*range(1, 11), name="memory", unit="MB"),), ())
    draw([measured(MET), curves], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_row_is_named_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """A row that does not exist ends the command at once, with the names of all rows."""
    with pytest.raises(SystemExit):
        command.main(["helo"])
    said = capsys.readouterr().err
    assert "there is no row 'helo'" in said
    assert all(name in said for name in ROWS)
