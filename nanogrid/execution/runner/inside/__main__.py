"""The first program of a warm container: it becomes the interpreter that is forked for every run.

Run as `python3 /nanogrid/runner --uid N --gid N --network own|host --learn imports|nothing [-- COMMAND...]`.
The rule: three things of this process survive: its pid, its connection to the host, and a memory file with its `State`
(`nanogrid_warm/reexec.py`). It replaces itself by the very command that a function is started with (`python main.py`), and
`boot/sitecustomize.py` holds that interpreter just before it opens `main.py`. A fork of that interpreter then continues as Python
does, from Python's own C code.

This process is root, with the few capabilities it needs to become the function's user and to kill that user's processes. It reads
only what the image, the read-only mount of the code and the host provide, never anything that a run could have written, and never a
request.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: B905, PTH100, PTH118, PTH120
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
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
    from nanogrid_warm import reexec, syscalls, workspace

    command = arguments[arguments.index("--") + 1 :] if "--" in arguments else DEFAULT_COMMAND
    options = dict(zip(arguments[::2], arguments[1::2]))
    environment = reexec.environment()
    reexec.exec_interpreter(
        reexec.State(
            **reexec.initial_fields(command, environment),
            first_command=command,
            faithful=reexec.safe_startup_variables(environment) == reexec.startup_variables(environment),
            uid=int(options.get("--uid", "65534")),
            gid=int(options.get("--gid", "65534")),
            learn_imports=options.get("--learn") != "nothing",
            own_network=options.get("--network") != "host",
            host_descriptor=reexec.connect_to_host(CONTROL),
            sockets=workspace.count_sockets(),
            environment=environment,
            reexecs=0,
            filtered=syscalls.refuse(),
            rehearsed=False,
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
