"""The real app with two plain tasks beside its own, for tests about workers and not about functions.

`celery -A tests.support.probe worker` differs from `celery -A nanogrid worker` in nothing else.
"""

from __future__ import annotations

import time
from pathlib import Path

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
