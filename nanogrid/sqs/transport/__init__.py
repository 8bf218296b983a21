"""SQS as Celery's broker: kombu's transport, made to survive faults, to keep held messages and to take bare JSON.

The one rule: a message leaves its queue only when its task is done. Whatever cannot be handled is made visible again,
and the queue's own redrive policy moves it to the dead-letter queue.

Used by `broker_transport = "nanogrid.sqs.transport:Transport"`, never by kombu's global table of transports, so that another
Celery app in the same process keeps kombu's own. `Transport` is imported when it is used: computing Celery's configuration
does not load boto3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanogrid.sqs.transport.options import transport_options

if TYPE_CHECKING:
    from nanogrid.sqs.transport.channel import Transport

__all__ = ["Transport", "transport_options"]


def __getattr__(name: str) -> Any:
    if name != "Transport":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nanogrid.sqs.transport.channel import Transport

    return Transport
