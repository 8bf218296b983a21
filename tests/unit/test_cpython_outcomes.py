"""How `make test-cpython` tells differences from accidents, and expected ones from others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nanogrid.execution.runner.inside.nanogrid_warm.source_scan import SourceScan
from tests.cpython.__main__ import PYTHONS
from tests.cpython.outcomes import (
    MISSING,
    Difference,
    DifferenceReport,
    Expectation,
    Outcomes,
    compared,
    load_expectations,
    read,
)
from tests.cpython.ways import PROGRAM

OS = "test.test_os.Files.test_open"


def run(**by_test: str) -> Outcomes:
    """A run with these outcomes."""
    return Outcomes(by_test, {}, 0.0, "")


def of(value: object, end: str = "exit code 0") -> dict[str, str]:
    """The outcomes in a value."""
    return read("test_os", json.dumps(value).encode(), end, 0.0, "").by_test


def test_the_worst_of_a_tests_outcomes_counts_whatever_addresses_it_names() -> None:
    """A test that is told more than once, as with parts that fail, has one outcome."""
    told = [["f <at 0x7f00aabbcc>", "ok", ""], ["f <at 0x7f00ddeeff>", "failure", "why"], ["", "end", ""]]
    assert of(told) == {"f <at 0x...>": "failure", "test.test_os (end)": "exit code 0"}


@pytest.mark.parametrize(
    ("value", "end"), [([[OS, "ok", ""]], "exit code 139"), ([[OS, "ok", ""]], "timed_out"), ([], "exit code 0")]
)
def test_a_module_that_does_not_come_to_its_end_is_told(value: list[list[str]], end: str) -> None:
    """What was run until then counts, and the end differs from one that came."""
    assert of(value, end)["test.test_os (end)"] == f"{end}, not to its end"


@pytest.mark.parametrize(
    ("plain", "nanogrid", "steady"),
    [
        ([run(a="ok")], [run(a="failure")], True),
        ([run(a="ok"), run(a="ok")], [run(a="failure"), run(a="ok")], False),
        ([run(a="ok")], [run()], True),
    ],
)
def test_a_difference_is_one_that_plain_docker_does_not_have_with_itself(
    plain: list[Outcomes], nanogrid: list[Outcomes], steady: bool
) -> None:
    """Also one that shows now and then, and a test that is not there."""
    ((difference,), flaky) = compared(plain, nanogrid)
    assert (difference.test, difference.plain, difference.steady, flaky) == ("a", "ok", steady, [])
    assert difference.nanogrid == " or ".join(dict.fromkeys(one.of("a") for one in nanogrid))


def test_what_differs_in_plain_docker_too_is_no_difference() -> None:
    """It is told apart, and not lost."""
    assert compared([run(a="ok"), run(a="error")], [run(a="failure"), run(a="failure")]) == ([], ["a"])


def test_the_same_outcomes_are_no_difference() -> None:
    """Whatever they are."""
    assert compared([run(a="failure")], [run(a="failure")]) == ([], [])


def expectations(**changes: bool) -> list[Expectation]:
    """One reason with two patterns."""
    tests = {"test.test_os.Files.*": ["ok", "error"], "setUpClass (test.test_os.Links)": ["*", MISSING]}
    return [Expectation("no network", ["3.11"], tests, **changes)]


def test_a_difference_is_expected_by_its_name_and_by_both_outcomes() -> None:
    """Another outcome than the expected one is unexpected."""
    report = DifferenceReport(expectations())
    expected, other = Difference(OS, "ok", "error", True), Difference(OS, "ok", "failure", True)
    report.add([expected, other])
    assert report.by_reason == {"no network": 1}
    assert report.unexpected == [other]


def test_a_reason_without_its_difference_is_stale_if_its_module_was_run() -> None:
    """Unless it may be missing."""
    report = DifferenceReport(expectations())
    report.add([Difference(OS, "ok", "error", True)])
    assert report.stale(["test_os"]) == ["setUpClass (test.test_os.Links)"]
    assert report.stale(["test_signal"]) == []
    assert DifferenceReport(expectations(sometimes=True)).stale(["test_os"]) == []


def test_the_program_itself_runs_in_the_held_interpreter(tmp_path: Path) -> None:
    """Else nothing would be judged: no word of it has NanoGrid take a new one."""
    shutil.copy(PROGRAM, tmp_path / "main.py")
    scan = SourceScan()
    scan.folder(str(tmp_path).encode())
    assert (scan.introspects, scan.uses_ctypes) == (False, False)


def test_every_expected_difference_names_a_known_python_and_a_module() -> None:
    """So none can be stale without being seen."""
    for python in PYTHONS:
        for expectation in load_expectations(python):
            assert set(expectation.pythons) <= set(PYTHONS)
            assert expectation.reason
            report = DifferenceReport([Expectation(expectation.reason, [python], expectation.tests)])
            modules = {
                f"test_{pattern.split('test.test_')[1].split('.')[0].split(' ')[0]}" for pattern in expectation.tests
            }
            assert report.stale(modules) == list(expectation.tests)
