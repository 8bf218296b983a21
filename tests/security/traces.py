"""A function whose runs do what they are told, of every kind that a warm container knows, and tokens to tell traces by.

The rule: every run after the first is in the container of the first, and warm, or the test fails.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanogrid.execution.executor import handler_command
from nanogrid.result import Outcome, StartKind
from tests.support.repeated import Repeated
from tests.support.rig import Rig, Run

INSIDE = Path(__file__).with_name("inside_a_run.py").read_text()

FORK, NEW, HANDLER, SHELL = "fork", "new", "handler", "shell"
KINDS = (FORK, NEW, HANDLER, SHELL)
"""How a run starts: in a fork of the held interpreter, in a new one, as a call of a handler, or as any other command."""

KEEP = "import os\nkept = os.fork()\nwhile not kept:\n    os.kill(os.getpid(), 19)\n"
"""Keep the memory that a run begins with, in a process that stands still: later code would overwrite the free parts of it."""

MAIN = KEEP + "import json, sys\nexec(json.load(sys.stdin), {'__name__': 'told', 'kept': kept})\n"
FILES = {
    FORK: {"main.py": MAIN},
    NEW: {"main.py": MAIN + "# a function that speaks of /proc gets an interpreter of its own\n"},
    # Any name is one of this module's functions: a request may choose which one it calls.
    HANDLER: {
        "app.py": KEEP + "def run(event, context):\n    exec(event, {'__name__': 'told', 'kept': kept})\n\n"
        "def __getattr__(name):\n    if name.startswith('__'):\n        raise AttributeError(name)\n    return run\n"
    },
}
FILES[SHELL] = {**FILES[FORK], "run.sh": "exec python3 main.py\n"}
DEFAULT_HANDLER = "app.run"


class Token:
    """A random word for one test. Everything that begins with it is a trace of this test, and a label names the kind of trace."""

    def __init__(self) -> None:
        self._first, self._second = "q" + secrets.token_hex(3), secrets.token_hex(4)

    def __call__(self, label: str = "") -> str:
        """Return the token with a label, as it is planted: letters and digits, a valid name in any language."""
        assert not label or label.isalpha()
        return self._first + self._second + label

    @property
    def halves(self) -> str:
        """Return the token as source for code that searches for it, in two parts that are not the token."""
        return f"Token({self._first!r}, {self._second!r})"


class Traced:
    """One function of one kind, and the container that all its runs share."""

    def __init__(self, rig: Rig, kind: str = FORK, *, packages: Path | None = None, begins_with: str = "") -> None:
        """`begins_with`: the package that its program imports first, so that it is imported in advance."""
        first = f"import {begins_with}\n" if begins_with else ""
        files = {name: first + text if name.endswith(".py") else text for name, text in FILES[kind].items()}
        self._function = Repeated(rig, files, memoryMb=256)
        self._wanted = replace(
            self._function.wanted, packages_dir=None if packages is None else str(packages), function_id=kind
        )
        if kind == SHELL:
            self._wanted = replace(self._wanted, command=("/bin/sh", "run.sh"))
        self._kind = kind
        self.container: str | None = None
        self.starts: list[StartKind] = []

    def run(
        self,
        source: str,
        *,
        env: dict[str, str] | None = None,
        handler: str = DEFAULT_HANDLER,
        request_id: str | None = None,
    ) -> Run:
        """Run this source once, with success, with `inside_a_run.py` before it."""
        run = self.attempt(source, env=env, handler=handler, request_id=request_id)
        assert self.outcome is Outcome.SUCCEEDED, (run.report, run.out, run.err)
        start, container = run.container.start_kind, run.container.id
        if self.container is not None:
            assert (start, container) == (StartKind.WARM, self.container)
        self.container = container
        self.starts.append(start)
        return run

    def attempt(
        self,
        source: str,
        *,
        env: dict[str, str] | None = None,
        handler: str = DEFAULT_HANDLER,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Run:
        """Do the same with any outcome, in any container."""
        wanted = self._wanted
        if request_id is None:
            request_id = f"test-{secrets.token_hex(6)}"
        command = handler_command(handler)[0] if self._kind == HANDLER else wanted.command
        return self._function.run(
            f"{INSIDE}\n{source}",
            command=command,
            request_id=request_id,
            env={**wanted.env, **(env or {}), "NANOGRID_REQUEST_ID": request_id},
            packages_dir=wanted.packages_dir,
            function_id=wanted.function_id,
            timeout_s=timeout_s,
        )

    @property
    def outcome(self) -> Outcome:
        """Return how the last run ended."""
        return self._function.outcome

    def ask(self, source: str, **request: Any) -> dict[str, Any]:
        """Return what a run finds. It prints that in one line at its end."""
        run = self.run(source, **request)
        found = json.loads(run.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found
