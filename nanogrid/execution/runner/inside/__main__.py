"""The start of a warm container: becomes the interpreter that will be forked for every run.

Run as `python3 /nanogrid/runner --uid N --gid N --network own|host --learn imports|nothing [-- COMMAND...]`.
The rule: nothing of this process survives but three things, its pid, the connection to the host and a memory file with what
it was told. It replaces itself by the very command that a function is started with (`python main.py`), and
`boot/sitecustomize.py` holds that interpreter just before it would open `main.py`. So a fork of it goes on as Python itself
does, from Python's own C code.

It is root, with the few capabilities that becoming the function's user and ending its processes takes. So it reads only what the
image, the code's read-only mount and the host have given, never what a run could have written; it never reads a request.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: B905, PTH100, PTH118, PTH120
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
CONTROL = os.path.join(os.path.dirname(HERE), "control.sock")
DEFAULT_COMMAND = ["python", "main.py"]


def main(arguments: list[str]) -> None:
    """Connect to the host and become the held interpreter."""
    sys.path.insert(0, HERE)
    from nanogrid_warm import begin

    command = arguments[arguments.index("--") + 1 :] if "--" in arguments else DEFAULT_COMMAND
    options = dict(zip(arguments[::2], arguments[1::2]))
    own = begin.environment()
    fresh = {
        "command": command,
        "special": begin.safe_special(own),
        "kinds": begin.STREAMS,
        "standard": [],
        "own": [],
        "scan": None,
    }
    begin.become(
        {
            **fresh,
            "fresh": fresh,
            "faithful": begin.safe_special(own) == begin.special(own),
            "uid": int(options.get("--uid", "65534")),
            "gid": int(options.get("--gid", "65534")),
            "learn": options.get("--learn") != "nothing",
            "own_network": options.get("--network") != "host",
            "control": begin.connect(CONTROL),
            "env": own,
            "changes": 0,
            "rehearsed": False,
        }
    )


if __name__ == "__main__":
    main(sys.argv[1:])
