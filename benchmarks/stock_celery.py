"""A plain Celery app with a task that does nothing: what runs on the same SQS and Redis without NanoGrid.

Both the worker (`celery -A benchmarks.stock_celery worker`) and the producer create it from the same variables. Delivery is as NanoGrid's: a message is
deleted after its result is stored. What makes kombu's SQS transport fast is set: no listing of queues, long polls, almost no pause between polls, as
many messages held as one poll can return.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from celery import Celery

QUEUE = "stock"
NOTHING = "stock.nothing"
SQS_URL, REDIS_URL = "STOCK_SQS_URL", "STOCK_REDIS_URL"
"""Variables: the queue's URL, and the Redis for results."""

CHILDREN = 2
HELD_PER_CHILD = 5
"""Ten messages are held, as many as one answer of SQS has. Celery's default is four per child."""


PAUSE_S = 0.01
"""kombu looks this often whether more messages may be held, and by default once a second. With 0 it would spin."""


def make(sqs_url: str, redis_url: str) -> Celery:
    """The app for a queue and a Redis."""
    app = Celery(
        "stock", broker=f"sqs://test:test-secret@{urlsplit(sqs_url).netloc}//", backend=redis_url, set_as_current=False
    )
    app.conf.update(
        broker_transport_options={
            "region": "us-east-1",
            "is_secure": False,
            "predefined_queues": {QUEUE: {"url": sqs_url}},
            "wait_time_seconds": 20,
            "polling_interval": PAUSE_S,
        },
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_concurrency=CHILDREN,
        worker_prefetch_multiplier=HELD_PER_CHILD,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=True,
    )

    @app.task(name=NOTHING, shared=False)
    def nothing(number: int) -> int:
        """Return the number."""
        return number

    return app


def nothing(app: Any, number: int) -> Any:
    """Send the task that does nothing. Returns Celery's result."""
    return app.tasks[NOTHING].delay(number)


app = make(os.environ[SQS_URL], os.environ[REDIS_URL]) if SQS_URL in os.environ else None
