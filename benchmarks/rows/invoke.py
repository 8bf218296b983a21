"""The command `nanogrid invoke`, from its start to its end, on a local stack with a warm hello.

Compared with an interpreter of the same environment that only imports the clients which such a command could be made of.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Goal, Line, Measured, ratio
from benchmarks.setting import Setting
from benchmarks.turns import in_turn
from tests.support.command import ENTRY, CommandLine

TITLE = "`nanogrid invoke` of a warm hello on a local stack, and an interpreter that imports boto3 and redis"
HELLO = Path(__file__).resolve().parents[2] / "examples" / "functions" / "hello"
COMMAND = "nanogrid invoke"
HELP = "nanogrid --help"
CLIENTS = "python -c 'import boto3, redis'"
BARE = "python -c pass"
LIMIT = 1.9
"""Half of what it was when each command created a Celery app, 3.8."""


def measure(setting: Setting) -> Measured:
    """Wall time of whole processes, in turn."""
    with _stack(setting) as command:
        variants = {
            COMMAND: _process([*ENTRY, "invoke", str(HELLO)], command, "hello, world\n"),
            HELP: _process([*ENTRY, "--help"], command),
            CLIENTS: _process([sys.executable, "-c", "import boto3, redis"], command),
            BARE: _process([sys.executable, "-c", "pass"], command),
        }
        samples = in_turn(setting.row, variants, rounds=setting.rounds(50))
    ours, help_text, clients, bare = (samples[name] for name in variants)
    lines = (
        ratio("invoke / imports of boto3 and redis", ours, clients, Goal(LIMIT)),
        ratio("invoke / bare python", ours, bare),
        ratio("--help / bare python", help_text, bare),
        Line("invoke, median", ours.median, "ms"),
    )
    return Measured(setting.row, TITLE, (ours, help_text, clients, bare), lines)


@contextmanager
def _stack(setting: Setting) -> Iterator[CommandLine]:
    """A local stack with free ports and a folder of its own."""
    command = CommandLine(setting.folder / "stack")
    images = {"NANOGRID_PYTHON_IMAGE": setting.python_image, "NANOGRID_CPP_IMAGE": setting.settings().cpp_image}
    command.ok("up", "--detach", *command.port_options, variables=images)
    try:
        yield command
    finally:
        command.ok("down")


def _process(argv: Sequence[str], command: CommandLine, prints: str | None = None) -> Callable[[], None]:
    """One process, from its start to its end. Raises RuntimeError if it prints anything else than it should."""

    def run() -> None:
        done = subprocess.run(argv, env=command.environment, capture_output=True, text=True, check=True)
        if prints is not None and done.stdout != prints:
            raise RuntimeError(f"{argv} printed {done.stdout!r}: {done.stderr[-500:]}")

    return run
