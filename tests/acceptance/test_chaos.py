"""Two hundred requests, and everything that can die dies while they run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from nanogrid.client import Client
from nanogrid.result import ExecutionResult, Outcome
from tests.acceptance.conftest import assert_nothing_left, open_grid
from tests.support import functions as programs
from tests.support.faulty_proxy import FaultyProxy
from tests.support.functions import Functions
from tests.support.services import Service, wait_until
from tests.support.worker import Worker

REQUESTS = 200
OUTAGE_S = 10.0


@pytest.mark.timeout(600)
def test_nothing_is_lost(tmp_path: Path, aws_url: str, own_redis: Service, functions: Functions, unique: str) -> None:
    """kill -9 of a child, kill -9 of the worker, a restart of Redis and 503s from SQS: every request has its right result.

    Nothing of it is left: no container, no run folder, no lock.
    """
    with (
        FaultyProxy(int(aws_url.rpartition(":")[2])) as sqs,
        open_grid(
            tmp_path,
            aws_url=sqs.url,
            s3_endpoint_url=aws_url,
            redis_url=f"redis://127.0.0.1:{own_redis.port}/0",
            unique=unique,
            visibility_timeout_s=8,
            visibility_heartbeat_s=2,
            claim_ttl_s=4,
            reap_interval_s=2,
            max_receives=20,
            receive_wait_s=2,
        ) as grid,
    ):
        client = Client(grid.settings)
        numbers = {
            client.submit(functions.request(programs.SQUARE, payload=n, timeoutMs=30_000)): n for n in range(REQUESTS)
        }

        def done(share: float) -> None:
            """Wait until that share of all requests has a result."""
            wait_until(
                lambda: sum(client.state(request_id) == "SUCCESS" for request_id in numbers) >= share * REQUESTS,
                f"{share:.0%} of the requests are done",
                170,
            )

        doomed = Worker(grid, "doomed@test", "nanogrid", "python,cpp")
        try:
            done(0.1)
            os.kill(random.choice(psutil.Process(doomed.process.pid).children()).pid, signal.SIGKILL)
            done(0.25)
        finally:
            doomed.process.kill()
            doomed.process.wait()
        with grid.worker("second@test", app="nanogrid", reachable=False):
            done(0.4)
            own_redis.kill()
            time.sleep(2)  # long enough for runs to end while Redis is away
            own_redis.start()
            client = Client(grid.settings)
            done(0.6)
            sqs.fail(status=503, seconds=OUTAGE_S)
            time.sleep(OUTAGE_S)
            for request_id, n in numbers.items():
                result: ExecutionResult = client.wait(request_id, 170)
                assert (result.outcome, result.value) == (Outcome.SUCCEEDED, n * n), result.to_wire()
        assert_nothing_left(grid.settings)
