"""The real app with two plain tasks beside its own, for tests about workers and not about functions.

`celery -A tests.support.probe worker` differs from `celery -A nanogrid worker` in nothing else, but for a command that makes
it lose its connection.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from celery.worker.control import control_command

from nanogrid.celery import app

QUICK = "probe.quick"
NAP = "probe.nap"


@app.task(name=QUICK, shared=False)
def quick(number: int) -> int:
    """Return the number."""
    return number


@app.task(name=NAP, shared=False)
def nap(seconds: float, log: str, mark: str) -> str:
    """Write the mark as a line of the log, then take some time."""
    with Path(log).open("a") as lines:
        lines.write(mark + "\n")
    time.sleep(seconds)
    return mark


@control_command()
def lose_connection(state: Any) -> dict[str, str]:
    """Break the consumer's connection in the event loop, so that the worker starts its consumer anew."""

    def lose() -> None:
        raise ConnectionResetError("the test asked for it")

    state.consumer.call_soon(lose)
    return {"ok": "it is lost"}
