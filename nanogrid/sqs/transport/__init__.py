"""SQS as Celery's broker: kombu's transport, changed to survive faults, to keep held messages and to accept bare JSON.

The rule: a message leaves its queue only when its task is done. A message that cannot be handled becomes visible again, and
the queue's redrive policy moves it to the dead-letter queue.

Celery's configuration names it (`broker_transport = "nanogrid.sqs.transport:Transport"`). It is not in kombu's global table of
transports, so that another Celery app in the same process keeps kombu's own. `Transport` is imported at its first use:
computing Celery's configuration does not load boto3.
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
