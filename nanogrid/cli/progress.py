"""Waits for a result, shows the request's state, and lets the request continue on Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nanogrid.cli import console
from nanogrid.cli.output import print_result
from nanogrid.errors import ResultUnavailableError

if TYPE_CHECKING:
    from nanogrid.cli.producer import Producer
    from nanogrid.client import Client
    from nanogrid.result import ExecutionResult

CHECK_EVERY_S = 0.5
PATIENT_S = 15.0
"""After this long without a worker that takes the request, print a hint."""

_WORDS = {
    "PENDING": "in the queue",
    "STARTED": "running",
    "RETRY": "waiting for another attempt",
    "SUCCESS": "done",
}


def wait_for(client: Client | Producer, request_id: str, limit_s: float | None, *, as_json: bool) -> int:
    """Wait, print the result, and return its exit code.

    On Ctrl-C the request continues, and a note says how to get its result or cancel it. Raises ResultUnavailableError after
    `limit_s`.
    """
    try:
        console.note(f"request: {request_id}")
        with _spinner() as show:
            result = watch(client, request_id, limit_s, show)
    except KeyboardInterrupt:
        console.note(
            f"\nthe request continues; to get its result: nanogrid result {request_id} --wait 60"
            f"\nto cancel it: nanogrid cancel {request_id}"
        )
        return console.INTERRUPTED
    except ResultUnavailableError:  # the limit passed; the error says so
        raise
    except Exception:
        console.note(
            f"waiting for {request_id} failed; it continues; to get its result: nanogrid result {request_id} --wait 60"
        )
        raise
    print_result(result, as_json=as_json)
    return result.shell_exit_code


@contextmanager
def _spinner() -> Iterator[Callable[[str], None]]:
    """A spinner with a text that can be changed. Shows nothing where stderr is no terminal."""
    if not console.shows_styles():
        yield lambda _: None
        return
    with console.stderr().status("sent") as spinner:
        yield spinner.update


def watch(
    client: Client | Producer, request_id: str, limit_s: float | None, show: Callable[[str], None]
) -> ExecutionResult:
    """Wait in short turns; `show` gets the request's state in between.

    Raises ResultUnavailableError after `limit_s`.
    """
    started, hinted = time.monotonic(), False
    while True:
        waited_s = time.monotonic() - started
        turn_s = CHECK_EVERY_S if limit_s is None else min(CHECK_EVERY_S, limit_s - waited_s)
        try:
            return client.wait(request_id, max(turn_s, 0.01))  # 0 would be no limit
        except ResultUnavailableError:
            waited_s = time.monotonic() - started
            if limit_s is not None and waited_s >= limit_s:
                raise
        state = client.state(request_id)
        show(f"{_WORDS.get(state, state.lower())} for {waited_s:.0f} s")
        if state == "PENDING" and waited_s > PATIENT_S and not hinted:
            hinted = True
            console.note("no worker has taken the request yet; run `nanogrid doctor` to find out why")
