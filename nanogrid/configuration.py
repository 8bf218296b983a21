"""Celery's configuration, computed from NanoGrid's settings.

Choices that are not obvious have their reason beside them. `celeryconfig.py` beside the package shows the same names where Celery users expect
them, and is the place to change one for a deployment.
"""

from __future__ import annotations

from typing import Any

from kombu import Queue

from nanogrid.connections import result_redis
from nanogrid.settings import Settings
from nanogrid.sqs import plain_json
from nanogrid.sqs.transport import transport_options

RESULT_KEY_PREFIX = "nanogrid:"
"""Prefix of every key in the result Redis, so that a request id chosen by a sender cannot name another application's key."""


def celery_configuration(settings: Settings) -> dict[str, Any]:
    """Return Celery's settings by their lowercase names."""
    return {
        # Broker: SQS by our own transport. Kombu's stays untouched for other applications in the process.
        "broker_url": settings.broker_url,
        "broker_transport": "nanogrid.sqs.transport:Transport",
        "broker_transport_options": transport_options(settings),
        "broker_connection_retry_on_startup": True,
        "task_queues": [Queue(name, routing_key=name) for name in settings.runtime_table.queues()],
        "task_default_queue": settings.runtime_table.queues()[0],
        # Results: JSON only, in Redis, for a bounded time. Storing is retried while Redis is down.
        "result_backend": f"nanogrid.results.backend:ResultBackend+{settings.result_url}",
        "result_backend_transport_options": {"global_keyprefix": RESULT_KEY_PREFIX},
        "result_backend_always_retry": True,
        "result_backend_max_sleep_between_retries_ms": 1000,
        "result_expires": settings.result_expires_s,
        "redis_socket_timeout": result_redis.ANSWER_TIMEOUT_S,
        "redis_socket_connect_timeout": result_redis.CONNECT_TIMEOUT_S,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 15,
        "task_serializer": plain_json.NAME,
        "result_serializer": plain_json.NAME,
        "accept_content": [plain_json.NAME, "json"],  # "json": Celery producers without this package
        "task_track_started": True,
        # Delivery: acknowledge after the result is stored. The message of a child that dies returns to its queue.
        "task_acks_late": True,
        "task_acks_on_timeout": True,
        "task_acks_on_failure": True,
        "task_reject_on_worker_lost": True,
        # One message per child: waiting messages stay visible to other hosts.
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": settings.concurrency or None,
        "worker_pool": "prefork",
        "worker_consumer": "nanogrid.monitoring.side_channel:Consumer",
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": True,
        "worker_redirect_stdouts": False,
    }
