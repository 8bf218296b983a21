"""`make test-cpython ARGS="[MODULE ...] [--python 3.13]"`: CPython's own tests, warm in NanoGrid and in plain docker.

The rule: the exit code is 0 only if every difference is expected in `expected.json`, and every expected difference occurs.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import docker

from tests.cpython.outcomes import DifferenceReport, Outcomes, Verdict, compared, load_expectations
from tests.cpython.ways import Plain, Subject, Warm, modules_in, source_of, take_tests, warm

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.13")
AGAIN = 2
"""How often a module with differences runs again, both ways, to find which differences are steady."""


class Judge:
    """Runs modules both ways and compares."""

    def __init__(self, warm: Warm, plain: Plain, tests: Path, records: Path) -> None:
        self._warm = warm
        self._plain = plain
        self._tests = tests
        self._records = records

    def judge(self, module: str) -> Verdict:
        """Run one module both ways, and again where there are differences."""
        subject = Subject(self._warm.rig, module)
        first, was_warm = self._warm.run(subject)
        here, there = [first], [self._plain.run(subject)]
        for _ in range(AGAIN):
            if not any(compared(there, here)):
                break
            here.append(self._warm.run(subject)[0])
            there.append(self._plain.run(subject))
        verdict = Verdict(module, len(here[0].by_test), warm=was_warm, took_s=(there[0].took_s, here[0].took_s))
        verdict.differences, verdict.flaky = compared(there, here)
        subject.remove()
        if verdict.differences:
            self._retry_with_source(verdict, there)
        self._record(verdict, there, here)
        return verdict

    def _retry_with_source(self, verdict: Verdict, there: list[Outcomes]) -> None:
        """Find the differences that disappear if the tests' source is part of the function: NanoGrid then takes a fresh interpreter."""
        subject = Subject(self._warm.rig, verdict.module, source_of(self._tests, verdict.module))
        if subject.introspects():
            own, _ = self._warm.run(subject)
            verdict.same_if_fresh = [one for one in verdict.differences if own.of(one.test) == there[0].of(one.test)]
            verdict.differences = [one for one in verdict.differences if one not in verdict.same_if_fresh]
        subject.remove()

    def _record(self, verdict: Verdict, there: list[Outcomes], here: list[Outcomes]) -> None:
        """Write all outcomes to a file, to find the cause of a difference."""
        record = {"verdict": asdict(verdict), "plain": [*map(asdict, there)], "nanogrid": [*map(asdict, here)]}
        (self._records / f"{verdict.module}.json").write_text(json.dumps(record, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit code."""
    chosen = _parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # both must remove the containers
        signal.signal(number, signal.default_int_handler)
    image = f"nanogrid/cpython:{chosen.python}"
    subprocess.run([str(ROOT / "deploy/images/build"), image], check=True, stdout=subprocess.DEVNULL)
    records = ROOT / "build" / f"cpython-{chosen.python}"
    records.mkdir(parents=True, exist_ok=True)
    client = docker.from_env(timeout=900)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nanogrid-cpython-") as name:
        folder = Path(name)
        tests = take_tests(client, image, folder)
        modules = chosen.modules or modules_in(tests)
        unknown = [module for module in modules if not source_of(tests, module).exists()]
        if unknown:
            sys.exit(f"CPython {chosen.python} has no tests of the name {unknown[0]}")
        with (
            warm(folder, image, chosen.jobs) as here,
            closing(Plain(client, image, here.rig.settings, folder)) as plain,
        ):
            verdicts = _judge_all(Judge(here, plain, tests, records), modules, chosen.jobs)
    client.close()
    print(f"\n{records.relative_to(ROOT)}/ has the details of each test.")
    return _sum_up(chosen.python, verdicts, modules, time.monotonic() - began)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cpython", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="test modules such as test_os (default: all)")
    parser.add_argument(
        "--python", choices=PYTHONS, default=PYTHONS[0], help="version of the tests and the interpreter"
    )
    parser.add_argument("--jobs", type=int, default=2, help="modules at a time (default: 2)")
    return parser.parse_args(arguments)


def _judge_all(judge: Judge, modules: Sequence[str], jobs: int) -> list[Verdict]:
    verdicts = []
    threads = ThreadPoolExecutor(jobs)
    futures = [threads.submit(judge.judge, module) for module in modules]
    try:
        for number, future in enumerate(as_completed(futures), 1):
            verdicts.append(future.result())
            print(f"[{number:3}/{len(modules)}] {_line(verdicts[-1])}", flush=True)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for running modules
    return verdicts


def _line(verdict: Verdict) -> str:
    there_s, here_s = verdict.took_s
    parts = [f"{verdict.module:32} {verdict.tests:5} outcomes   plain {there_s:6.1f} s   warm {here_s:6.1f} s"]
    if not verdict.warm:
        parts.append("NOT WARM")
    for number, what in (
        (len(verdict.differences), "different"),
        (len(verdict.same_if_fresh), "same with a fresh interpreter"),
        (len(verdict.flaky), "flaky in plain docker"),
    ):
        if number:
            parts.append(f"{number} {what}")
    return "   ".join(parts)


def _sum_up(python: str, verdicts: Sequence[Verdict], modules: Sequence[str], took_s: float) -> int:
    """Print the summary and return the exit code."""
    report = DifferenceReport(load_expectations(python))
    for verdict in verdicts:
        report.add(verdict.differences)
    stale = report.stale(modules)
    same_if_fresh = [one for verdict in verdicts for one in verdict.same_if_fresh]
    flaky = [test for verdict in verdicts for test in verdict.flaky]
    outcomes = sum(verdict.tests for verdict in verdicts)
    same_modules = sum(not (verdict.differences or verdict.same_if_fresh) for verdict in verdicts)
    expected = sum(report.by_reason.values())
    same = outcomes - expected - len(report.unexpected) - len(same_if_fresh) - len(flaky)
    rows = [
        (
            len(verdicts),
            f"modules of CPython {python}; {sum(verdict.warm for verdict in verdicts)} in a warm container, {same_modules} without a difference",
        ),
        (outcomes, "outcomes: one for each test, and one for the end of each module"),
        (same, "the same as in plain docker"),
        (len(flaky), "flaky in plain docker, not compared"),
        (
            len(same_if_fresh),
            "the same if the tests' source is part of the function: it has words that lead to a fresh interpreter",
        ),
        *((number, f"expected: {reason}") for reason, number in report.by_reason.items()),
        (len(report.unexpected), "unexpected"),
        (len(stale), "expected, but no longer occurring"),
    ]
    print(*(f"{number:7}  {what}" for number, what in rows), f"in {took_s / 60:.0f} minutes", sep="\n")
    for title, lines in (
        ("flaky in plain docker", flaky),
        ("the same if the source is part of the function", [one.test for one in same_if_fresh]),
        ("unexpected", list(map(str, report.unexpected))),
        ("no longer occurring", stale),
    ):
        if lines:
            print(f"\n{title}:", *lines, sep="\n  ")
    return 1 if report.unexpected or stale else 0


if __name__ == "__main__":
    sys.exit(main())
