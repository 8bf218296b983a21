"""Redis beside SQS: where worker events and remote control travel, seen from whoever watches or commands workers.

The one rule: what is about *tasks* goes to SQS by `connection_for_read` and `connection_for_write`; what is about *workers*
goes to Redis by `monitor_connection`. The worker's end is `nanogrid.monitoring.side_channel`, the web page's `nanogrid.monitoring.dashboard`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from celery.app import control
from kombu import Connection

from nanogrid.settings import Settings, current

if TYPE_CHECKING:
    from celery import Celery

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0
QUICK_RETRIES = 2
"""Attempts of a command before it says that Redis is away. A worker's end and Flower's try for ever instead."""


def _keepalive_options() -> dict[int, int]:
    """Notice a peer that vanished without a word within a minute: a subscriber never writes, so only TCP can tell."""
    wanted = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    return {getattr(socket, name): value for name, value in wanted if hasattr(socket, name)}


def monitor_connection(
    settings: Settings, *, max_retries: int | None = None, patience_s: float | None = None
) -> Connection:
    """A new, lazy connection to the monitoring Redis. It never inherits what is configured for SQS.

    `max_retries` limits the attempts to connect; None tries for ever, at most two seconds apart. `patience_s` is how long
    connecting, and each answer, may take; None: two seconds and five.
    """
    return Connection(
        settings.monitor_url,
        transport_options={
            "socket_connect_timeout": patience_s or CONNECT_TIMEOUT_S,
            "socket_timeout": patience_s or ANSWER_TIMEOUT_S,
            "socket_keepalive": True,
            "socket_keepalive_options": _keepalive_options(),
            "health_check_interval": 10,
            "max_retries": max_retries,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 2,
        },
    )


def settings_of(app: Celery) -> Settings:
    """The settings of a NanoGrid app, or of the process where the app has none."""
    own = getattr(app, "settings", None)
    return own if isinstance(own, Settings) else current()


def is_nanogrid(app: object) -> bool:
    """Whether a Celery app is one of NanoGrid's, and not a producer's own."""
    return isinstance(getattr(app, "settings", None), Settings)


class Control(control.Control):
    """`app.control`: ping, inspect, revoke and the rest, over Redis.

    Raises kombu's OperationalError when Redis is away, instead of waiting for it.
    """

    def __init__(self, app: Any = None) -> None:
        super().__init__(app)
        self.mailbox.producer_pool = None  # the app's pool leads to SQS

    def broadcast(self, *args: Any, connection: Connection | None = None, **kwargs: Any) -> Any:
        """Send a command to workers, on `connection` where one is given."""
        if connection is not None or kwargs.get("channel") is not None:
            return super().broadcast(*args, connection=connection, **kwargs)
        with monitor_connection(settings_of(self.app), max_retries=QUICK_RETRIES) as own:
            return super().broadcast(*args, connection=own, **kwargs)
