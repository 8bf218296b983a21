"""A whole NanoGrid: SQS and S3 (moto) and a Redis on loopback, a worker with two children, and a producer.

The rule: everything is a process of its own, started here and ended by its own handle.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.programs import Program
from benchmarks.setting import Setting
from nanogrid.client import Client
from nanogrid.result import ExecutionResult
from tests.support.functions import Functions, zipped
from tests.support.probe import QUICK
from tests.support.services import moto_service, redis_service, running
from tests.support.worker import PROBE, Grid, grid, variables

WAIT_S = 60.0
QUEUE = "python"
RESULT_KEYS = (b"nanogrid:celery-task-meta-", b"nanogrid:results")
TUNER_KEYS = (b"nanogrid:tuner:",)
NEVER = -1
"""Redis' answer for a key without an expiry."""


@dataclass
class Stack:
    """The means of a producer, and the figures that a row checks."""

    grid: Grid
    client: Client
    functions: Functions
    worker_pid: int

    def request(self, program: Program, **fields: Any) -> dict[str, Any]:
        """A request that names the hash of its code, so that S3 is not asked when it is cached. Without an id."""
        files = dict(program.files)
        made = self.functions.request(files, codeSha256=hashlib.sha256(zipped(files)).hexdigest(), **fields)
        return {name: value for name, value in made.items() if name != "requestId"}

    def run(self, request: dict[str, Any], prints: str) -> ExecutionResult:
        """Send a request and wait for its result. Raises RuntimeError if the result is wrong."""
        return checked(self.client.wait(self.client.submit(request), WAIT_S), prints)

    def run_many(self, requests: Iterable[Mapping[str, Any]], prints: str, in_flight: int) -> Iterator[ExecutionResult]:
        """Send requests with at most this many in flight, and give their results in the order of the requests."""
        flying: deque[str] = deque()
        for request in requests:
            flying.append(self.client.submit(dict(request)))
            if len(flying) >= in_flight:
                yield checked(self.client.wait(flying.popleft(), WAIT_S), prints)
        while flying:
            yield checked(self.client.wait(flying.popleft(), WAIT_S), prints)

    def nothing(self) -> None:
        """Send a Celery task that does nothing to the same queue, and wait for its result."""
        self.client.app.send_task(QUICK, args=(1,), queue=QUEUE).get(timeout=WAIT_S)

    def lasting_keys(self) -> int:
        """Keys in Redis that never expire."""
        return sum(expires_s == NEVER for _, expires_s in self._keys())

    def other_keys(self) -> int:
        """Keys in Redis that no request leaves permanently: claims for a while after their run, and keys of remote control.

        Results are left out, and so are the results stream and the tuner's records.
        """
        return sum(not key.startswith((*RESULT_KEYS, *TUNER_KEYS)) for key, _ in self._keys())

    def _keys(self) -> list[tuple[bytes, int]]:
        """Every key of both databases and in how many seconds it expires."""
        found: list[tuple[bytes, int]] = []
        for url in (self.grid.settings.result_url, self.grid.settings.monitor_url):
            with redis.Redis.from_url(url) as connection, connection.pipeline(transaction=False) as questions:
                keys = list(connection.scan_iter(count=5000))
                for key in keys:
                    questions.ttl(key)
                found += zip(keys, questions.execute(), strict=True)
        return found


def checked(result: ExecutionResult, prints: str) -> ExecutionResult:
    """The result, if the run succeeded with this output."""
    if result.stdout != prints or not result.success:
        raise RuntimeError(f"the run gave {result}")
    return result


@contextmanager
def stack(setting: Setting, *, app: str = PROBE, folder: Path | None = None, **changes: Any) -> Iterator[Stack]:
    """A running stack, until the block ends.

    `app` is the worker's, `folder` its own one if the row has more than one stack, and `changes` are settings of the worker.
    """
    folder = folder or setting.folder
    with running(moto_service(folder)) as moto, running(redis_service(folder)) as server:
        made = grid(
            folder,
            aws_url=f"http://127.0.0.1:{moto.port}",
            redis_url=f"redis://127.0.0.1:{server.port}/0",
            unique="bench",
            python_image=setting.settings().python_image,
            cpp_image=setting.settings().cpp_image,
            **changes,
        )
        with made as here, here.worker("bench@benchmark", app=app) as worker:
            os.environ.update({name: value for name, value in variables(here.settings).items() if "AWS_" in name})
            functions = Functions(f"http://127.0.0.1:{moto.port}")
            yield Stack(here, Client(here.settings), functions, worker.process.pid)
