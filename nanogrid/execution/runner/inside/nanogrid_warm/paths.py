"""The paths of a warm container.

The rule: WRITABLE names every place that a run can write to, and nothing privileged reads from any of them.
"""

# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

WORKSPACE = "/workspace"
CODE = "/nanogrid/code"
PACKAGES = "/nanogrid/packages"
COMPILER_CACHE = "/nanogrid/compiler-cache"
CALL_HANDLER = "/nanogrid/runner/call_handler.py"
COMPILERS = "/nanogrid/runner/bin"

RUN = "/nanogrid/run"
"""The input and output of one run, in memory."""

PAYLOAD = RUN + "/payload.json"
RESULT = RUN + "/result.json"
IMPORT_REPORT = RUN + "/.imports"

WRITABLE = (WORKSPACE, "/tmp", "/dev/shm", RUN)  # noqa: S108
"""Emptied after each run. The compiler cache, if there is one, stays: it belongs to one function's code."""

NO_HOME = "/nonexistent"
"""The home of a process that must not read anything from its home."""


def is_normalized(path: str) -> bool:
    """Return whether a path has no empty part, no `.` and no `..`."""
    return not {"", ".", ".."}.intersection(path[path.startswith("/") :].split("/"))


def is_outside_writable(path: str) -> bool:
    """Return whether a path is absolute and, judged by its text, leads to no place that a run can write to."""
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts:
        return False
    plain = "/" + "/".join(part for part in parts if part not in ("", "."))
    return not any(plain == place or plain.startswith(place + "/") for place in (*WRITABLE, COMPILER_CACHE, "/proc"))
