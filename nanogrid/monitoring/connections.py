"""The connection to the monitoring Redis, and remote control over it, for processes that watch or control workers.

The rule: messages about *tasks* go to SQS (`connection_for_read`, `connection_for_write`); events and commands about *workers* go
to Redis (`monitor_connection`). The worker's side is `nanogrid.monitoring.side_channel`, Flower's is
`nanogrid.monitoring.dashboard`.
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
"""Retries of a command before it reports that Redis does not answer. Workers and Flower retry for ever."""


def _keepalive_options() -> dict[int, int]:
    """Detect within a minute that the other side is gone. A subscriber never writes, so only TCP can detect it."""
    options = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    return {getattr(socket, name): value for name, value in options if hasattr(socket, name)}


def monitor_connection(
    settings: Settings, *, max_retries: int | None = None, patience_s: float | None = None
) -> Connection:
    """A new connection to the monitoring Redis, opened at its first use. It inherits no option of the connection to SQS.

    `max_retries` limits the attempts to connect; None retries for ever, at most two seconds apart. `patience_s` limits the time
    for connecting, and for each answer; None: two and five seconds.
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
    """The settings of a NanoGrid app, or those of the process for another app."""
    own = getattr(app, "settings", None)
    return own if isinstance(own, Settings) else current()


def is_nanogrid(app: object) -> bool:
    """Whether a Celery app is NanoGrid's, and not a producer's own."""
    return isinstance(getattr(app, "settings", None), Settings)


class Control(control.Control):
    """`app.control`: ping, inspect, revoke and other commands, over Redis.

    Raises kombu's OperationalError if Redis does not answer, instead of waiting for it.
    """

    def __init__(self, app: Any = None) -> None:
        super().__init__(app)
        self.mailbox.producer_pool = None  # the app's pool has connections to SQS

    def broadcast(self, *args: Any, connection: Connection | None = None, **kwargs: Any) -> Any:
        """Send a command to workers, on `connection` or else on a new one."""
        if connection is not None or kwargs.get("channel") is not None:
            return super().broadcast(*args, connection=connection, **kwargs)
        with monitor_connection(settings_of(self.app), max_retries=QUICK_RETRIES) as own:
            return super().broadcast(*args, connection=own, **kwargs)
