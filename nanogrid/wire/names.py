"""The names that stand on Celery messages: tasks and headers. They are part of the wire format."""

from __future__ import annotations

EXECUTE = "nanogrid.execute_function"
REDUCE = "nanogrid.reduce_function"
"""Names of the two tasks."""

SENT_AT = "nanogrid_sent_at_ms"
"""Header: when the request was first sent, in milliseconds since 1970. Stays the same over retries."""

NOT_LOWERED = "nanogrid_not_lowered"
"""Header: this attempt has the memory limit that the request asks for, whatever the tuner says."""

RECEIVES_HEADER = "nanogrid_receives"
"""Header: how many deliveries of a request were attempts, of the messages that this one was sent anew from."""
