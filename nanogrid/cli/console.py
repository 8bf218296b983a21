"""What the command prints, and where.

The rule: only the requested output goes to stdout; progress, notes and errors go to stderr. Colors and spinners appear
only on a terminal, and never if NO_COLOR is set (rich handles both).
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

OWN_FAILURE = 2
"""Exit code if the command itself failed."""

NOT_RUN = 125
"""Exit code of `nanogrid invoke` if the function was not run."""

FORCED = frozenset({"FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"})
"""Variables by which rich takes a pipe for a terminal."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def stdout() -> Console:
    """The console for results meant for people."""
    from rich.console import Console

    # A pipe has no width, so a table is never cut.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 400)


def stderr() -> Console:
    """The console for progress, notes and errors. Long lines wrap on terminals only."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a remark that is not part of the result."""
    say((text, "dim"))


def complain(error: object) -> None:
    """Print an error as one sentence."""
    say(("error: ", "bold red"), (str(error), "default"))


def say(*parts: tuple[str, str]) -> None:
    """Print one line to stderr, from texts and their styles. Without a terminal there are no styles, and rich is not imported."""
    if not shows_styles():
        print("".join(text for text, _ in parts), file=sys.stderr)
        return
    from rich.text import Text

    stderr().print(Text.assemble(*parts))


def shows_styles() -> bool:
    """Whether rich may take stderr for a terminal."""
    return sys.stderr.isatty() or not FORCED.isdisjoint(os.environ)


def print_json(value: Any) -> None:
    """Print JSON for scripts: ASCII only, so that no locale can garble it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_line(value: Any) -> None:
    """Print one JSON value on one line, and flush it: the reader of a pipe gets it at once."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()
