"""The function: runs one module of CPython's own tests, or only loads it, and writes the outcome of each test to its value.

Its payload is {"module": NAME, "load": BOOL}. The value is a list of [test, outcome, details]. It is complete JSON at every moment, even
if a module ends the process. This file must not contain a word that makes NanoGrid start a fresh interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
import unittest
from typing import Any

RESULT = os.environ.get("NANOGRID_RESULT", "")
OWN_PID = os.getpid()
DETAILS_LIMIT = 3000


def report(test: str, outcome: str, details: str = "") -> None:
    """Append an entry to the value. No descriptor stays open. A forked child that also runs tests writes nothing."""
    if os.getpid() != OWN_PID:
        return
    entry = json.dumps([test, outcome, details[-DETAILS_LIMIT:]]).encode()
    file = os.open(RESULT, os.O_RDWR | os.O_CREAT, 0o666)
    size = os.fstat(file).st_size
    os.pwrite(file, (b",\n" if size else b"[") + entry + b"]", size - 1 if size else 0)
    os.close(file)


class Outcomes(unittest.TextTestResult):
    """Writes each outcome at once."""

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        super().addSuccess(test)
        report(test.id(), "ok")

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        report(test.id(), "error", self.errors[-1][1])

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        report(test.id(), "failure", self.failures[-1][1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            is_failure = issubclass(err[0], test.failureException)
            report(
                test.id(), "failure" if is_failure else "error", (self.failures if is_failure else self.errors)[-1][1]
            )

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        report(test.id(), "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        report(test.id(), "expected failure")

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        report(test.id(), "unexpected success")


def run_suite(suite: Any) -> None:
    """Run a suite as CPython's own test runner does."""
    result: Any = Outcomes
    unittest.TextTestRunner(resultclass=result, verbosity=0).run(suite)


def run_doctest(module: Any, verbosity: Any = None, optionflags: int = 0) -> tuple[int, int]:
    """Run a module's examples as one test."""
    import doctest

    failed, tried = doctest.testmod(module, verbose=False, optionflags=optionflags)
    report(f"{module.__name__} (examples)", "failure" if failed else "ok", f"{failed} of {tried} examples failed")
    return failed, tried


def run_module(name: str, *, load: bool) -> None:
    """Run, or only load, one module of the package `test`."""
    support: Any = importlib.import_module("test.support")
    support.use_resources = []  # no tests that need minutes, gigabytes, a display or a network
    support.verbose = False
    support._run_suite = run_suite
    support.run_doctest = run_doctest
    loader = unittest.TestLoader()
    try:
        module = importlib.import_module(f"test.{name}")
        suite = loader.loadTestsFromModule(module)
    except unittest.SkipTest as skip:
        report(f"test.{name} (import)", "skipped", str(skip))
        return
    for error in loader.errors:
        report(f"test.{name} (load)", "error", str(error))
    if load:
        return
    test_main = getattr(module, "test_main", None)
    if test_main is None:
        run_suite(suite)
    else:
        test_main()


def main() -> None:
    """Run the module. An exception becomes an outcome; the exit code is the interpreter's own."""
    payload = json.load(sys.stdin)
    try:
        run_module(payload["module"], load=payload["load"])
    except BaseException as error:  # noqa: BLE001
        outcome = "skipped" if isinstance(error, unittest.SkipTest) else "error"
        report(f"test.{payload['module']} (module)", outcome, traceback.format_exc())
    report("", "end")


if __name__ == "__main__":
    main()
