"""Memory of a worker with many children, compared with the same worker that prepares nothing for them.

Every request leaves out the hash of its code, as one that is written by hand does, so that each child asks S3.
"""

from __future__ import annotations

from itertools import repeat

import psutil

from benchmarks.census import MEMORY_UNIT, pss_mb
from benchmarks.figures import TIMES, Goal, Line, Measured, Samples, ratio
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.stack import stack
from tests.support.worker import PROBE

TITLE = (
    "memory (PSS) of a worker with 16 children after 500 requests, and of one that prepares nothing for its children"
)
CHILDREN = 16
REQUESTS = 500
WORKERS = {"nanogrid": PROBE, "without the preparation": "benchmarks.unshared"}


def measure(setting: Setting) -> Measured:
    """One worker after the other. Each process is one sample."""
    main: dict[str, float] = {}
    children: dict[str, Samples] = {}
    for name, app in WORKERS.items():
        main[name], memory = _after_requests(setting, app)
        children[name] = Samples(f"{name}, a child", MEMORY_UNIT, tuple(memory))
    ours, theirs = (main[name] + sum(children[name].values) for name in WORKERS)
    child, other_child = children.values()
    lines = (
        Line("the whole worker / without the preparation", ours / theirs, TIMES, Goal(0.5)),
        Line("the whole worker", ours, MEMORY_UNIT),
        Line("its main process", main["nanogrid"], MEMORY_UNIT),
        ratio("a child / without the preparation", child, other_child),
    )
    return Measured(setting.row, TITLE, (child, other_child), lines)


def _after_requests(setting: Setting, app: str) -> tuple[float, list[float]]:
    """Memory of the main process and of each child of a worker, when it is idle again."""
    folder = setting.folder / app
    folder.mkdir()
    with stack(setting, app=app, folder=folder, concurrency=CHILDREN) as here:
        request = here.request(HELLO)
        del request["codeSha256"]
        for _ in here.run_many(repeat(request, setting.rounds(REQUESTS)), HELLO.prints, 2 * CHILDREN):
            pass
        children = psutil.Process(here.worker_pid).children()
        return pss_mb(here.worker_pid), [pss_mb(child.pid) for child in children]
