"""The outcome of each test, both ways, and which differences are expected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

ADDRESS = re.compile("0x[0-9a-f]{6,}")
MISSING = "missing"
WORST_FIRST = ("error", "failure", "unexpected success", "ok", "expected failure", "skipped")
EXPECTED = Path(__file__).with_name("expected.json")


@dataclass(frozen=True)
class Outcomes:
    """One run of one module: the outcome and the messages of each test. The end of the module counts as a test."""

    by_test: dict[str, str]
    details: dict[str, str]
    took_s: float
    output: str

    def of(self, test: str) -> str:
        """The outcome of a test, or `missing` if it did not run."""
        return self.by_test.get(test, MISSING)


def read(module: str, value: bytes | None, end: str, took_s: float, output: str) -> Outcomes:
    """Read the outcomes from a run's value. `end` says how its process ended."""
    by_test: dict[str, str] = {}
    details: dict[str, list[str]] = {}
    complete = False
    for name, outcome, text in json.loads(value or b"[]"):
        if not name:
            complete = True
            continue
        test = ADDRESS.sub("0x...", name)
        by_test[test] = min(outcome, by_test.get(test, outcome), key=WORST_FIRST.index)
        if text:
            details.setdefault(test, []).append(text)
    by_test[f"test.{module} (end)"] = end if complete else f"{end}, not to its end"
    return Outcomes(by_test, {test: "\n".join(texts) for test, texts in details.items()}, took_s, output)


@dataclass(frozen=True)
class Difference:
    """A test with different outcomes in NanoGrid and in plain docker. `steady`: no outcome occurred on both sides in any run."""

    test: str
    plain: str
    nanogrid: str
    steady: bool

    def __str__(self) -> str:
        return f"{self.test}: {self.plain} in plain docker, {self.nanogrid} here"


@dataclass
class Verdict:
    """The result of comparing one module's runs."""

    module: str
    tests: int = 0
    warm: bool = True
    took_s: tuple[float, float] = (0, 0)
    flaky: list[str] = field(default_factory=list)
    """Tests that differ between two runs in plain docker."""
    same_if_fresh: list[Difference] = field(default_factory=list)
    """Differences that disappear if the module's source is part of the function: NanoGrid then takes a fresh interpreter."""
    differences: list[Difference] = field(default_factory=list)


def compared(plain: Sequence[Outcomes], nanogrid: Sequence[Outcomes]) -> tuple[list[Difference], list[str]]:
    """Return the differences between both sides, and the tests that are flaky: they differ in plain docker, too."""
    differences, flaky = [], []
    tests = dict.fromkeys(test for run in (*plain, *nanogrid) for test in run.by_test)
    for test in tests:
        there, here = ({run.of(test): None for run in runs} for runs in (plain, nanogrid))
        if there.keys() == here.keys() and len(there) == 1:
            continue
        if len(there) > 1:
            flaky.append(test)
        else:
            steady = there.keys().isdisjoint(here)
            differences.append(Difference(test, " or ".join(there), " or ".join(here), steady))
    return differences, flaky


@dataclass
class Expectation:
    """Differences with one reason. `tests`: pattern of a test's name → its outcomes in plain docker and here."""

    reason: str
    pythons: list[str]
    tests: dict[str, list[str]]
    sometimes: bool = False
    """Whether they occur depends on the machine or on timing."""

    def covers(self, difference: Difference) -> str | None:
        """The pattern that expects this difference."""
        for pattern, (plain, nanogrid) in self.tests.items():
            if (
                fnmatchcase(difference.test, pattern)
                and fnmatchcase(difference.plain, plain)
                and fnmatchcase(difference.nanogrid, nanogrid)
            ):
                return pattern
        return None


def load_expectations(python: str, path: Path = EXPECTED) -> list[Expectation]:
    """The expected differences of one version of Python."""
    found = [Expectation(**entry) for entry in json.loads(path.read_text())]
    return [entry for entry in found if python in entry.pythons]


class DifferenceReport:
    """Sorts differences into expected and unexpected ones."""

    def __init__(self, expectations: Iterable[Expectation]) -> None:
        self._expectations = list(expectations)
        self._seen: set[str] = set()
        self.by_reason: dict[str, int] = {}
        self.unexpected: list[Difference] = []

    def add(self, differences: Iterable[Difference]) -> None:
        """Sort some differences."""
        for difference in differences:
            for expectation in self._expectations:
                if (pattern := expectation.covers(difference)) is not None:
                    self._seen.add(pattern)
                    self.by_reason[expectation.reason] = self.by_reason.get(expectation.reason, 0) + 1
                    break
            else:
                self.unexpected.append(difference)

    def stale(self, modules: Iterable[str]) -> list[str]:
        """Return the patterns of differences that no longer occur in these modules. All of the modules must have run."""
        ran = {f"test.{module}" for module in modules}
        return [
            pattern
            for expectation in self._expectations
            if not expectation.sometimes
            for pattern in expectation.tests
            if pattern not in self._seen and module_of(pattern) in ran
        ]


def module_of(test: str) -> str:
    """Return the module in a test's name or in a pattern, also of `setUpClass (test.test_os.Some)`."""
    found = re.search(r"test\.test_\w+", test)
    return found[0] if found else ""
