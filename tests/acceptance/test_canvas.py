"""What a canvas of Celery's may make of requests, seen from the worker."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import redis
from celery.result import AsyncResult

from nanogrid.queues import resolve, sqs_client
from nanogrid.tasks import execute_function
from tests.support import functions as programs
from tests.support.functions import Functions
from tests.support.worker import Grid, Worker


@pytest.mark.parametrize("name", ["celery.map", "celery.starmap"])
def test_requests_without_ids_of_their_own_are_not_run(
    grid: Grid, worker: Worker, functions: Functions, name: str
) -> None:
    """Whoever sends them past our own producer: the task fails at once with a sentence, and nothing is kept under "None"."""
    requests: list[Any] = [functions.request(programs.HELLO, payload=payload) for payload in ("one", "two")]
    for request in requests:
        del request["requestId"]
    items = requests if name == "celery.map" else [[request] for request in requests]
    request_id = uuid.uuid4().hex
    envelope = {
        "body": json.dumps([[], {"task": dict(execute_function.s()), "it": items}, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": name, "id": request_id, "root_id": request_id},
        "properties": {"body_encoding": "utf-8", "delivery_info": {}, "priority": 0},
    }
    sqs = sqs_client(grid.settings)
    sqs.send_message(QueueUrl=resolve("python", grid.settings, sqs), MessageBody=json.dumps(envelope))
    answer = AsyncResult(request_id, app=grid.app)
    answer.get(timeout=30, propagate=False)
    assert (answer.state, "without a request id" in str(answer.result)) == ("FAILURE", True), answer.result
    with redis.Redis.from_url(grid.settings.result_url, decode_responses=True) as client:
        assert list(client.scan_iter("*None*")) == []
    assert worker.alive()
