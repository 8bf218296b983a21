"""The result Redis stalls at each step of a run, or its answer is lost there: answered once, told once, run once, in time."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

from nanogrid.client import Client, follow
from nanogrid.result import Outcome
from tests.acceptance.conftest import open_grid
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.redis_proxy import RedisProxy
from tests.support.services import Service
from tests.support.worker import Grid, Worker

STEP = re.compile(rb"nanogrid:(claim:|celery-task)")
"""A command about a request, or about the map that it is a part of."""

STEPS = 10
"""A map of one part, and its reduction, have at least as many."""

STALL_S = 0.4
"""Longer than the worker waits for an answer."""

PROMPT_S = 6.0
"""Longer than any stall here, and shorter than a claim's life, or another delivery of the message."""


@pytest.fixture
def proxy(own_redis: Service) -> Iterator[RedisProxy]:
    """What the worker takes for its Redis."""
    with RedisProxy(own_redis.port) as here:
        yield here


@pytest.fixture
def grid(proxy: RedisProxy, tmp_path: Path, aws_url: str, redis_url: str, unique: str) -> Iterator[Grid]:
    """A NanoGrid whose worker's Redis is behind the proxy."""
    with open_grid(
        tmp_path,
        aws_url=aws_url,
        redis_url=proxy.url,
        monitor_url=redis_url.replace("/0", "/1"),
        unique=unique,
    ) as here:
        yield here


@pytest.fixture
def worker(grid: Grid) -> Iterator[Worker]:
    """A worker that takes Redis for away after 0.25 s."""
    with grid.worker(app="tests.support.hasty", queues="python") as here:
        yield here


class Trouble:
    """What happens to one command of a worker's."""

    def __init__(self, kind: str, proxy: RedisProxy, service: Service) -> None:
        self.kind, self._proxy, self._service = kind, proxy, service

    def at(self, step: int) -> Any:
        """Let it happen at this step."""
        return self._proxy.at(step, STEP, None if self.kind == "lost" else getattr(self, self.kind))

    def late(self) -> None:
        """The command is held up, and reaches Redis after its sender has given it up, and has sent it again."""
        time.sleep(STALL_S)

    def stopped(self) -> None:
        """Redis stops, goes on later, and carries out what was sent in the meantime in an order of its own."""
        assert self._service.process is not None
        pid = self._service.process.pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(STALL_S, os.kill, (pid, signal.SIGCONT)).start()


def messages(heard: Any) -> Counter[str]:
    """How many ends were published, by channel."""
    found: Counter[str] = Counter()
    while message := heard.get_message(timeout=0.1):
        found[message["channel"].rpartition("-meta-")[2]] += "SUCCESS" in message["data"]
    return found


@pytest.mark.parametrize("kind", ["lost", "late", "stopped"])
def test_each_step(
    kind: str, proxy: RedisProxy, own_redis: Service, grid: Grid, worker: Worker, functions: Functions
) -> None:
    """One step more each time, until a map and its reduction end before it is reached."""
    trouble = Trouble(kind, proxy, own_redis)
    client = Client(grid.settings.model_copy(update={"result_url": f"redis://127.0.0.1:{own_redis.port}/0"}))
    with (
        closing(redis.Redis(port=own_redis.port, decode_responses=True)) as listener,
        closing(listener.pubsub(ignore_subscribe_messages=True)) as heard,  # type: ignore[no-untyped-call]
    ):
        heard.psubscribe("nanogrid:celery-task-meta-*")
        heard.get_message(timeout=5)
        ran = []
        for step in count(1):
            plan = trouble.at(step)
            began = time.monotonic()
            whole = client.map_reduce(functions.request(programs.SQUARE), [step], functions.request(programs.SUM))
            result = client.wait(whole, 30)
            took_s = time.monotonic() - began
            assert (result.outcome, result.value) == (Outcome.SUCCEEDED, step**2), (step, result)
            ran += [f"{whole}/0", whole]
            assert messages(heard) == {f"{whole}/0": 1, whole: 1}, step
            assert took_s < PROMPT_S or step == 1, (step, took_s)
            if plan.left:
                break
        assert step > STEPS
        told = [found.result.request_id for found in follow(client.settings, start="all", idle_s=0.0)]
    assert told == ran
    log = worker.log.read_text()
    assert [len(re.findall(rf"started +{re.escape(each)} ", log)) for each in ran] == [1] * len(ran)
