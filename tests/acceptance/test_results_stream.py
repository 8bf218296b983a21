"""A control plane follows the results stream through restarts of Redis and of itself, and has every result in the end."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from celery.app.task import Context

from nanogrid.client import Client
from nanogrid.result import Outcome, not_run
from nanogrid.results.stream.entry import StreamedResult
from nanogrid.settings import Settings
from nanogrid.wire.names import EXECUTE
from tests.acceptance.conftest import assert_nothing_left, open_grid
from tests.support import functions as programs
from tests.support.command import ENTRY
from tests.support.functions import Functions
from tests.support.services import redis_service, running, wait_until
from tests.support.worker import environment

WAIT_S = 90.0
WRITERS = 3
BULK = 40
"""Results that each writer stores in each part of the test."""
RUNS = 10


class ControlPlane:
    """`nanogrid results --follow --group ... --json` in one life: its lines and what it said, as files."""

    def __init__(self, settings: Settings, folder: Path, name: str) -> None:
        self.out, self.err = folder / f"{name}.jsonl", folder / f"{name}.log"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*ENTRY, "results", "--follow", "--group", "control-plane", "--json"],
                stdout=out,
                stderr=err,
                env=environment(settings),
            )

    def lines(self) -> list[dict[str, Any]]:
        """The results that it printed; the last line may be cut where it was killed."""
        return [json.loads(line) for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def has(self, count: int) -> bool:
        """Whether it printed so many. Fails where it ended by itself."""
        assert self.process.poll() in (None, -9), self.err.read_text()
        return len(self.lines()) >= count

    def said(self, text: str) -> bool:
        """Whether it said so beside its results."""
        return text in self.err.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


class Writers:
    """Threads that store results as workers do, many in short time."""

    def __init__(self, settings: Settings) -> None:
        self.clients = [Client(settings) for _ in range(WRITERS)]
        self.stored: set[str] = set()

    def begin(self, part: str) -> list[threading.Thread]:
        """Store the results of one part, in all threads."""
        threads = [
            threading.Thread(target=self._store, args=(client, f"bulk-{part}-{number}"))
            for number, client in enumerate(self.clients)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _store(self, client: Client, name: str) -> None:
        for number in range(BULK):
            request_id = f"{name}-{number}"
            context = Context(task=EXECUTE, args=({"functionId": "bulk"},))
            client.app.backend.mark_as_done(request_id, not_run(request_id, "bulk", "stored"), request=context)
            self.stored.add(request_id)

    def close(self) -> None:
        """Close their connections."""
        for client in self.clients:
            client.app.backend.client.close()
            client.app.close()


@contextmanager
def writers(settings: Settings) -> Iterator[Writers]:
    """Writers for the length of a `with` block."""
    made = Writers(settings)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(300)
def test_no_gap_through_restarts_of_redis_and_of_the_follower(
    tmp_path: Path, aws_url: str, unique: str, functions: Functions
) -> None:
    """Redis is killed twice and the control plane once, while results come: numbers 1 to N, nothing missing.

    A second follower, without a group, lives through all of it and gets each result once.
    """
    (tmp_path / "redis").mkdir()
    service = redis_service(tmp_path / "redis")
    # By default Redis may lose what it said it has written within the last second, and that is not what is tested here.
    service.argv += ["--appendfsync", "always"]
    with (
        running(service) as redis,
        open_grid(
            tmp_path,
            aws_url=aws_url,
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            unique=unique,
            retry_backoff_s=0.2,
            retry_backoff_max_s=0.5,
            reap_interval_s=2,
        ) as grid,
        writers(grid.settings) as writing,
    ):
        client = Client(grid.settings)
        seen: list[StreamedResult] = []
        watched = client.follow(start="all", idle_s=WAIT_S)
        watcher = threading.Thread(target=lambda: seen.extend(islice(watched, 3 * (WRITERS * BULK + RUNS))))
        runs: list[str] = []

        def some_runs() -> None:
            runs.extend(client.submit(functions.request(programs.HELLO, payload=n)) for n in range(RUNS))

        with grid.worker(app="nanogrid"):
            first = ControlPlane(grid.settings, tmp_path, "first-life")
            watcher.start()

            some_runs()
            part = writing.begin("a")
            wait_until(lambda: first.has(BULK), "the follower follows")
            redis.kill()
            wait_until(lambda: first.said("Redis does not answer"), "the follower misses Redis")
            redis.start()
            some_runs()
            part += writing.begin("b")
            wait_until(lambda: first.has(2 * BULK), "the follower goes on after the first restart", WAIT_S)
            first.kill()
            second = ControlPlane(grid.settings, tmp_path, "second-life")
            some_runs()
            wait_until(lambda: second.has(1), "the follower goes on in its second life", WAIT_S)
            part += writing.begin("c")
            redis.kill()
            wait_until(lambda: second.said("Redis does not answer"), "the follower misses Redis again")
            redis.start()
            for thread in part:
                thread.join()
            everything = writing.stored | set(runs)

            def all_seen() -> bool:
                both = first.lines() + second.lines()
                return second.has(0) and {each["result"]["requestId"] for each in both} == everything

            wait_until(all_seen, "the follower has every result", WAIT_S)
            second.kill()
        watcher.join()
        watched.close()
        client.app.backend.client.close()
        assert_nothing_left(grid.settings)

    told = first.lines() + second.lines()
    times = Counter(each["number"] for each in told)
    twice = sorted(number for number, count in times.items() if count > 1)
    said = [line for life in (first, second) for line in life.err.read_text().splitlines() if "Redis" in line]
    print(f"\n{len(everything)} results ({len(runs)} real runs), Redis killed twice, the follower once")
    print(f"first life: {len(first.lines())} results; second life: {len(second.lines())} results")
    print(f"numbers {min(times)}..{max(times)} unbroken: {sorted(times) == list(range(1, len(everything) + 1))}")
    print(f"came twice, as not acknowledged before the kill: {twice}")
    print(f"without a group: {len(seen)} results, {seen[0].number}..{seen[-1].number}, each once")
    print(*said, sep="\n")

    assert sorted(times) == list(range(1, len(everything) + 1))
    assert len({(each["number"], each["result"]["requestId"]) for each in told}) == len(everything)
    assert {each["missed"] for each in told} == {0}
    assert first.said("Redis answers again")
    assert second.said("Redis answers again")
    assert [found.number for found in seen] == list(range(1, len(everything) + 1))
    assert {found.result.request_id for found in seen} == everything
    assert {found.result.outcome for found in seen if found.result.request_id in runs} == {Outcome.SUCCEEDED}
