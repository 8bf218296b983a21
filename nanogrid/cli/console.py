"""What the command prints, and where.

The one rule: stdout carries what was asked for and nothing else; progress, notes and errors go to stderr. Colours and
spinners only on a terminal, and none where NO_COLOR is set (rich sees to both).
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

OWN_FAILURE = 2
"""Exit code when the command itself could not do what was asked."""

NOT_RUN = 125
"""Exit code of `nanogrid invoke` when the function was not run."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def stdout() -> Console:
    """The console for results meant for people."""
    from rich.console import Console

    # A pipe has no width: a table is never cut for it.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 400)


def stderr() -> Console:
    """The console for progress, notes and errors. Long lines wrap on terminals only."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A remark beside the result."""
    from rich.text import Text

    stderr().print(Text(text, style="dim"))


def complain(error: object) -> None:
    """One sentence about what went wrong."""
    from rich.text import Text

    stderr().print(Text("error: ", style="bold red").append(str(error), style="default"))


def print_json(value: Any) -> None:
    """JSON for scripts: ASCII only, so that no locale can garble it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_line(value: Any) -> None:
    """One JSON value in one line, written at once: whoever reads a pipe gets it now."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()
