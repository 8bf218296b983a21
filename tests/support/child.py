"""A process that runs functions one after the other on command, as a worker's child does."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nanogrid.errors import NanoGridError
from nanogrid.execution.pool.protocol import Line
from nanogrid.result import StartKind
from tests.support.repeated import Repeated
from tests.support.rig import Rig

ANSWER_S = 60.0


@dataclass(frozen=True)
class ChildRun:
    """One run in another process: how it was started, what it printed, and in which container."""

    start: StartKind
    out: str
    container_id: str


class Child:
    """Gets commands over its own connection. `functions` are those that it can run, by index."""

    def __init__(self, rig: Rig, functions: tuple[Repeated, ...]) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_S)
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            try:
                rig.owner.leave_to_parent()
                serve(Line(theirs), functions)
            finally:
                os._exit(0)
        theirs.close()
        self._line = Line(ours)

    def begin(self, payload: Any = None, function: int = 0, request_id: str | None = None) -> None:
        """Start a run."""
        self._line.send({"payload": payload, "function": function, "request_id": request_id})

    def result(self) -> ChildRun:
        """The outcome of the run. Raises AssertionError if it failed."""
        answer = self._line.receive()
        assert answer is not None, "the child is gone"
        assert "error" not in answer, answer
        return ChildRun(StartKind(answer["start"]), answer["out"], answer["id"])

    def error(self) -> str:
        """The error of a run that failed."""
        answer = self._line.receive()
        assert answer is not None
        return str(answer["error"])

    def run(self, payload: Any = None, function: int = 0) -> ChildRun:
        """Start a run and return its outcome."""
        self.begin(payload, function)
        return self.result()

    def kill(self) -> None:
        """Kill it, as the kernel's OOM killer would."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        self._line.close()


def serve(line: Line, functions: tuple[Repeated, ...]) -> None:
    """The main loop of the other process."""
    while (told := line.receive()) is not None:
        function = functions[told["function"]]
        changes: dict[str, Any] = {}
        if told["request_id"]:
            env = {**function.wanted.env, "NANOGRID_REQUEST_ID": told["request_id"]}
            changes = {"request_id": told["request_id"], "env": env}
        try:
            run = function.run(told["payload"], **changes)
        except NanoGridError as error:
            line.send({"error": f"{type(error).__name__}: {error}"})
            continue
        line.send({"start": run.container.start_kind.value, "out": run.out, "id": run.container.id})


@contextmanager
def child(rig: Rig, *functions: Repeated) -> Iterator[Child]:
    """A process for the length of a `with` block."""
    made = Child(rig, functions)
    try:
        yield made
    finally:
        made.kill()
