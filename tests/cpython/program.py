"""The function: runs one module of CPython's own tests, or only loads it, and leaves what became of each test as its value.

Its payload is {"module": NAME, "load": BOOL}. The value is a list of [test, outcome, details], readable as JSON at any moment: also
where a module ends the process. It says no word that would have NanoGrid start a new interpreter for it.
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


def tell(test: str, outcome: str, details: str = "") -> None:
    """Add one entry to the value. No descriptor stays open, and a child that runs tests too says nothing."""
    if os.getpid() != OWN_PID:
        return
    entry = json.dumps([test, outcome, details[-DETAILS_LIMIT:]]).encode()
    file = os.open(RESULT, os.O_RDWR | os.O_CREAT, 0o666)
    size = os.fstat(file).st_size
    os.pwrite(file, (b",\n" if size else b"[") + entry + b"]", size - 1 if size else 0)
    os.close(file)


class Outcomes(unittest.TextTestResult):
    """Tells each outcome at once."""

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        super().addSuccess(test)
        tell(test.id(), "ok")

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        tell(test.id(), "error", self.errors[-1][1])

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        tell(test.id(), "failure", self.failures[-1][1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            is_failure = issubclass(err[0], test.failureException)
            tell(test.id(), "failure" if is_failure else "error", (self.failures if is_failure else self.errors)[-1][1])

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        tell(test.id(), "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        tell(test.id(), "expected failure")

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        tell(test.id(), "unexpected success")


def run_suite(suite: Any) -> None:
    """What CPython's own program for running tests does with a suite."""
    result: Any = Outcomes
    unittest.TextTestRunner(resultclass=result, verbosity=0).run(suite)


def run_doctest(module: Any, verbosity: Any = None, optionflags: int = 0) -> tuple[int, int]:
    """The same for a module's examples, as one test."""
    import doctest

    failed, tried = doctest.testmod(module, verbose=False, optionflags=optionflags)
    tell(f"{module.__name__} (examples)", "failure" if failed else "ok", f"{failed} of {tried} examples failed")
    return failed, tried


def run_module(name: str, *, load: bool) -> None:
    """Run, or only load, one module of the package `test`."""
    support: Any = importlib.import_module("test.support")
    support.use_resources = []  # nothing that takes minutes, gigabytes, a display or a network
    support.verbose = False
    support._run_suite = run_suite
    support.run_doctest = run_doctest
    loader = unittest.TestLoader()
    try:
        module = importlib.import_module(f"test.{name}")
        suite = loader.loadTestsFromModule(module)
    except unittest.SkipTest as skip:
        tell(f"test.{name} (import)", "skipped", str(skip))
        return
    for error in loader.errors:
        tell(f"test.{name} (load)", "error", str(error))
    if load:
        return
    test_main = getattr(module, "test_main", None)
    if test_main is None:
        run_suite(suite)
    else:
        test_main()


def main() -> None:
    """Whatever a module raises is an outcome of its own; the exit code is left to how the interpreter ends."""
    payload = json.load(sys.stdin)
    try:
        run_module(payload["module"], load=payload["load"])
    except BaseException as error:  # noqa: BLE001
        outcome = "skipped" if isinstance(error, unittest.SkipTest) else "error"
        tell(f"test.{payload['module']} (module)", outcome, traceback.format_exc())
    tell("", "end")


if __name__ == "__main__":
    main()
