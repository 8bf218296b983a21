"""Where things lie in a warm container.

The rule: WRITABLE names every place that a run can write to, and nothing privileged reads from any of them.
"""

# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

WORKSPACE = "/workspace"
CODE = "/nanogrid/code"
PACKAGES = "/nanogrid/packages"
COMPILER_CACHE = "/nanogrid/compiler-cache"

RUN = "/nanogrid/run"
"""What one run is given, and what it gives back, in memory."""

PAYLOAD = RUN + "/payload.json"
RESULT = RUN + "/result.json"
LESSON = RUN + "/.lesson"

WRITABLE = (WORKSPACE, "/tmp", "/dev/shm", RUN)  # noqa: S108
"""Emptied after each run. The compiler cache, where there is one, stays: it belongs to one function's code."""

NOWHERE = "/nonexistent"
"""The home of a process that is to read nothing from its home."""


def is_plain(path: str) -> bool:
    """Whether a path is written without any step that leads nowhere, or back."""
    return not {"", ".", ".."}.intersection(path[path.startswith("/") :].split("/"))


def is_beyond_runs(path: str) -> bool:
    """Whether a path is absolute and leads to no place that a run can write to, as far as its text tells."""
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts:
        return False
    plain = "/" + "/".join(part for part in parts if part not in ("", "."))
    return not any(plain == place or plain.startswith(place + "/") for place in (*WRITABLE, COMPILER_CACHE, "/proc"))
