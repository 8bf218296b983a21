"""The real app with a few plain tasks more, for tests about workers and not about functions.

`celery -A tests.support.probe worker` otherwise differs from `celery -A nanogrid worker` only in a command that makes
it lose its connection.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

from celery.worker.control import control_command
from celery.worker.state import reserved_requests

from nanogrid.celery import app

QUICK = "probe.quick"
NAP = "probe.nap"
LOADED = "probe.loaded"


@app.task(name=QUICK, shared=False)
def quick(number: int) -> int:
    """Return the number."""
    return number


@app.task(name=NAP, shared=False)
def nap(seconds: float, log: str, mark: str) -> str:
    """Write the mark to the log, then sleep."""
    with Path(log).open("a") as lines:
        lines.write(mark + "\n")
    time.sleep(seconds)
    return mark


@app.task(name=LOADED, shared=False)
def loaded() -> dict[str, Any]:
    """Return what this child has loaded."""
    return _loaded()


@control_command()
def loaded_by_main(state: Any) -> dict[str, Any]:
    """Return what the main process has loaded."""
    return _loaded()


def _loaded() -> dict[str, Any]:
    return {"pid": os.getpid(), "modules": sorted(sys.modules), "frozen": gc.get_freeze_count()}


@control_command()
def lose_connection(state: Any) -> dict[str, str]:
    """Break the consumer's connection in the event loop, so that the worker restarts its consumer."""

    def lose() -> None:
        raise ConnectionResetError("the test asked for it")

    state.consumer.call_soon(lose)
    return {"ok": "it is lost"}


@control_command(args=[("slots", int)])
def lose_slots(state: Any, slots: int) -> dict[str, str]:
    """Take slots of the pool and never return them, as an error between taking a slot and handing over would."""

    def lose() -> None:
        state.consumer.controller.semaphore.value -= slots

    state.consumer.call_soon(lose)
    return {"ok": "they are lost"}


@control_command(args=[("times", int)])
def break_handovers(state: Any, times: int) -> dict[str, str]:
    """Let the next requests fail on their way to a child, where Celery pickles them."""
    pool = state.consumer.pool._pool
    put, left = pool._quick_put, iter(range(times))

    def broken(job: Any) -> None:
        if next(left, None) is not None:
            raise RecursionError("the test asked for it")
        put(job)

    pool._quick_put = broken
    return {"ok": "they are broken"}


@control_command()
def hang_with_a_request(state: Any) -> dict[str, str]:
    """Take all slots, and block the event loop from the moment a request waits for one."""

    def hang() -> None:
        if reserved_requests:
            time.sleep(600)

    state.consumer.controller.semaphore.value = 0
    state.consumer.hub.on_tick.add(hang)
    return {"ok": "it will hang"}
