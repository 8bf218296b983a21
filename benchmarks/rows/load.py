"""Many requests at once through a whole worker, compared with a task that does nothing on Celery alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import stock_celery
from benchmarks.figures import Goal, Line, Measured, Samples, ratio
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.stack import WAIT_S, Stack, checked, stack
from nanogrid.connections.sqs import sqs_client

TITLE = "many requests at once, the whole way, 2 children, beside a task that does nothing on Celery alone"
OURS = "nanogrid, warm hello"
STOCK = "Celery alone, a task that does nothing"
REQUESTS, QUICK_REQUESTS = 600, 150
ROUNDS, QUICK_ROUNDS = 4, 2
LONG_POLL_S = 20
SQS_CALL = b'"POST /'
"""What moto logs for each call of SQS. Calls of S3 are no POST here."""


@dataclass(frozen=True)
class Load:
    """What one batch of requests took. CPU time is that of the worker: its main process and its children."""

    per_second: float
    cpu_ms: float
    sqs_calls: float


def measure(setting: Setting) -> Measured:
    """Both workers wait for messages all the time. Each round sends to one, then to the other."""
    number = QUICK_REQUESTS if setting.quick else REQUESTS
    loads: dict[str, list[Load]] = {OURS: [], STOCK: []}
    with stack(setting, receive_wait_s=LONG_POLL_S) as here, _stock(here) as (pid, app):
        request = here.request(HELLO)
        variants: dict[str, tuple[int, Callable[[int], None]]] = {
            OURS: (here.worker_pid, lambda requests: _hello(here, request, requests)),
            STOCK: (pid, lambda requests: _nothing(app, requests)),
        }
        for name in variants:
            variants[name][1](number // 5)
        for done in range(QUICK_ROUNDS if setting.quick else ROUNDS):
            for name in sorted(variants, reverse=bool(done % 2)):
                loads[name].append(_load(here, *variants[name], number))
    rate, cpu, calls = (
        [
            Samples(f"{name}: {what}", unit, tuple(getattr(load, field) for load in found))
            for name, found in loads.items()
        ]
        for what, unit, field in (
            ("requests a second", "1/s", "per_second"),
            ("worker CPU per request", "ms", "cpu_ms"),
            ("SQS calls per request", "", "sqs_calls"),
        )
    )
    lines = (
        ratio("worker CPU per request, of Celery alone", cpu[0], cpu[1], Goal(1.25)),
        ratio("requests a second, of Celery alone", rate[0], rate[1], Goal(0.9, at_least=True)),
        Line("SQS calls per request, of producer and worker together", calls[0].median, "", Goal(0.5)),
    )
    return Measured(setting.row, TITLE, (*cpu, *rate, *calls), lines, (f"{number} requests at once",))


@contextmanager
def _stock(here: Stack) -> Iterator[tuple[int, Any]]:
    """A worker of Celery alone: its process id, and the app to send with."""
    url = sqs_client(here.grid.settings).create_queue(QueueName=stock_celery.QUEUE)["QueueUrl"]
    redis_url = f"{here.grid.settings.result_url.rpartition('/')[0]}/5"
    variables = {stock_celery.SQS_URL: url, stock_celery.REDIS_URL: redis_url}
    with here.grid.worker(
        "stock@benchmark", app="benchmarks.stock_celery", queues=stock_celery.QUEUE, reachable=False, env=variables
    ) as worker:
        app = stock_celery.make(url, redis_url)
        try:
            yield worker.process.pid, app
        finally:
            app.close()


def _hello(here: Stack, request: dict[str, Any], number: int) -> None:
    for request_id in here.client.submit_many([request] * number):
        checked(here.client.wait(request_id, WAIT_S), HELLO.prints)


def _nothing(app: Any, number: int) -> None:
    for given, result in enumerate([stock_celery.nothing(app, each) for each in range(number)]):
        if result.get(timeout=WAIT_S) != given:
            raise RuntimeError("the task gave a wrong number")


def _load(here: Stack, pid: int, send: Callable[[int], None], number: int) -> Load:
    log = here.grid.folder / "moto.log"
    calls, cpu_s, begin = _calls(log), _cpu_s(pid), time.perf_counter()
    send(number)
    took_s = time.perf_counter() - begin
    return Load(number / took_s, (_cpu_s(pid) - cpu_s) / number * 1000, (_calls(log) - calls) / number)


def _calls(log: Path) -> int:
    return log.read_bytes().count(SQS_CALL)


def _cpu_s(pid: int) -> float:
    """User and system time of a worker so far: its main process, its children, and children that have ended."""
    main = psutil.Process(pid)
    used = [each.cpu_times() for each in (main, *main.children())]
    return sum(each.user + each.system for each in used) + used[0].children_user + used[0].children_system
