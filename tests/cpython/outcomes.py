"""What became of each test, both ways, and which differences were expected."""

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
    """One run of one module: test → outcome, and test → what it said. The module's own end is one of the tests."""

    by_test: dict[str, str]
    details: dict[str, str]
    took_s: float
    output: str

    def of(self, test: str) -> str:
        """The outcome of a test, `missing` where it was not run."""
        return self.by_test.get(test, MISSING)


def read(module: str, value: bytes | None, end: str, took_s: float, output: str) -> Outcomes:
    """The outcomes that a run of the function has left. `end` says how its process ended."""
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
    """A test with other outcomes here than there. `steady`: it had none in common in all the runs."""

    test: str
    plain: str
    nanogrid: str
    steady: bool

    def __str__(self) -> str:
        return f"{self.test}: {self.plain} in plain docker, {self.nanogrid} here"


@dataclass
class Verdict:
    """What comparing one module's runs has shown."""

    module: str
    tests: int = 0
    warm: bool = True
    took_s: tuple[float, float] = (0, 0)
    flaky: list[str] = field(default_factory=list)
    """Tests that differ between two runs in plain docker."""
    told_apart: list[Difference] = field(default_factory=list)
    """Differences that are none when the module's source is the function's own: NanoGrid then takes a new interpreter."""
    differences: list[Difference] = field(default_factory=list)


def compared(plain: Sequence[Outcomes], nanogrid: Sequence[Outcomes]) -> tuple[list[Difference], list[str]]:
    """The differences between runs there and runs here, and the tests that are no judge because they differ there too."""
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
    """It depends on the machine, or on the moment, whether they show."""

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


class Ledger:
    """Sorts differences into expected and unexpected ones."""

    def __init__(self, expectations: Iterable[Expectation]) -> None:
        self._expectations = list(expectations)
        self._seen: set[str] = set()
        self.by_reason: dict[str, int] = {}
        self.unexpected: list[Difference] = []

    def enter(self, differences: Iterable[Difference]) -> None:
        """Sort these."""
        for difference in differences:
            for expectation in self._expectations:
                if (pattern := expectation.covers(difference)) is not None:
                    self._seen.add(pattern)
                    self.by_reason[expectation.reason] = self.by_reason.get(expectation.reason, 0) + 1
                    break
            else:
                self.unexpected.append(difference)

    def stale(self, modules: Iterable[str]) -> list[str]:
        """Patterns that expect a difference in one of these modules, all of which were run, where none is any more."""
        ran = {f"test.{module}" for module in modules}
        return [
            pattern
            for expectation in self._expectations
            if not expectation.sometimes
            for pattern in expectation.tests
            if pattern not in self._seen and module_of(pattern) in ran
        ]


def module_of(test: str) -> str:
    """The module that a test's name, or a pattern, is about: `setUpClass (test.test_os.Some)` too."""
    found = re.search(r"test\.test_\w+", test)
    return found[0] if found else ""
