"""A producer that sends, forks, and sends on both sides at once: `python -m tests.support.forking KIND`.

Prints, as JSON, what each process got: the parent first. KIND says what forks: os.fork, multiprocessing's processes, or its pool.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from celery.result import AsyncResult

from nanogrid.celery import NanoGrid, make_app
from nanogrid.celery import app as default_app
from nanogrid.settings import Settings
from tests.support.probe import QUICK

CHILDREN = 3
EACH = 4
PATIENCE_S = 6.0

APPS: tuple[NanoGrid, ...] = (default_app, make_app(Settings()))
"""The default app, and one with its own settings."""


def send(app: NanoGrid, number: int) -> AsyncResult:
    """Ask for a number."""
    return app.send_task(QUICK, args=(number,), queue="python")


def answers(asked: list[AsyncResult]) -> list[Any]:
    """The answers from before the fork and from now, of both apps; an error's name if there is none."""
    asked = [*asked, *(send(app, number) for number in range(EACH) for app in APPS)]
    return [_answer(handle) for handle in asked]


def _answer(handle: AsyncResult) -> Any:
    try:
        return handle.get(timeout=PATIENCE_S)
    except Exception as error:  # noqa: BLE001  # the test checks which error it is
        traceback.print_exc()
        return type(error).__name__


def by_fork(asked: list[AsyncResult]) -> list[Any]:
    """Plain os.fork, as gunicorn does it."""
    pipes = []
    for _ in range(CHILDREN):
        reading, writing = os.pipe()
        if not os.fork():
            os.write(writing, json.dumps(answers(asked)).encode())
            os._exit(0)
        os.close(writing)
        pipes.append(reading)
    own = answers(asked)
    return [own, *(json.load(os.fdopen(pipe)) for pipe in pipes)]


def _put(queue: Any, asked: list[AsyncResult]) -> None:
    queue.put(answers(asked))


def by_process(asked: list[AsyncResult]) -> list[Any]:
    """multiprocessing.Process."""
    made = multiprocessing.get_context("fork")
    queue = made.SimpleQueue()
    processes = [made.Process(target=_put, args=(queue, asked)) for _ in range(CHILDREN)]
    for process in processes:
        process.start()
    own = answers(asked)
    told = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return [own, *told]


def _asked_anew(_: int) -> list[Any]:
    return answers([])


def by_pool(asked: list[AsyncResult]) -> list[Any]:
    """multiprocessing.Pool, which accepts no handle."""
    with multiprocessing.get_context("fork").Pool(CHILDREN) as pool:
        told = pool.map_async(_asked_anew, range(CHILDREN), chunksize=1)
        return [answers(asked), *told.get()]


KINDS: dict[str, Callable[[list[AsyncResult]], list[Any]]] = {"fork": by_fork, "process": by_process, "pool": by_pool}

if __name__ == "__main__":
    for each in APPS:  # connections to Redis and to SQS are open at the fork
        assert send(each, 1).get(timeout=PATIENCE_S) == 1
    before = [send(each, 7) for each in APPS]
    print(json.dumps(KINDS[sys.argv[1]](before)))
