"""Names in Celery messages: tasks, headers, the serializer and keys of results. They are part of the wire format."""

from __future__ import annotations

EXECUTE = "nanogrid.execute_function"
REDUCE = "nanogrid.reduce_function"
"""Names of the two tasks."""

RESULT_KEY = "nanogrid:celery-task-meta-"
"""What stands before a request id in the key of its result in Redis, and in the channel on which it is published."""

PLAIN_JSON = "nanogrid-json"
"""Celery's name for our serializer."""

SENT_AT = "nanogrid_sent_at_ms"
"""Header: when the request was first sent, in milliseconds since 1970. Retries keep it."""

NOT_LOWERED = "nanogrid_not_lowered"
"""Header: this attempt runs with the requested memory limit, whatever the tuner recommends."""

RECEIVES_HEADER = "nanogrid_receives"
"""Header: how often SQS has delivered this message. The transport sets it on receipt."""
