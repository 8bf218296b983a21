"""The client for SQS."""

from __future__ import annotations

from typing import Any

from nanogrid.connections.aws import new_session
from nanogrid.settings import Settings

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 10
ATTEMPTS = 3


def sqs_client(settings: Settings) -> Any:
    """A new SQS client. The endpoint comes from the settings or the AWS environment, credentials from boto's chain.

    Its calls end within about half a minute: the worker's event loop waits for some of them.
    """
    from botocore.config import Config

    return new_session().create_client(
        "sqs",
        region_name=settings.region,
        endpoint_url=settings.sqs_endpoint_url or None,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            tcp_keepalive=True,
        ),
    )
