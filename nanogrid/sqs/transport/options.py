"""The Celery app's `broker_transport_options`."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit

from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings
from nanogrid.telemetry.tracing import CARRIED

SETTINGS_OPTION = "nanogrid"
QUEUES_MAY_BE_MISSING = "nanogrid_queues_may_be_missing"
"""Option of a connection: a missing queue is no error. Its polls keep trying."""


class SettingsReference:
    """Passes the settings to the transport without showing them.

    `celery report` and `inspect conf` print transport options, and their repr decides which connections share a pool. This
    repr shows no value, and differs if a setting differs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]

    def __repr__(self) -> str:
        return f"<NanoGrid settings {self._digest}>"


def transport_options(settings: Settings) -> dict[str, Any]:
    """Celery's `broker_transport_options`.

    Raises ConfigurationError for a broker URL with a host or credentials: the endpoint is a separate setting, and all clients
    take credentials from boto's chain, the polling connection too.
    """
    url = urlsplit(settings.broker_url)
    if url.scheme != "sqs" or url.netloc or url.path.strip("/"):
        raise ConfigurationError(
            f"NANOGRID_BROKER_URL must be 'sqs://' and nothing else, but its scheme is {url.scheme!r} or it has more parts: leave it "
            "at 'sqs://', set the endpoint in NANOGRID_SQS_ENDPOINT_URL and credentials in the AWS environment"
        )
    return {
        SETTINGS_OPTION: SettingsReference(settings),
        "region": settings.region,
        "visibility_timeout": settings.visibility_timeout_s,
        "wait_time_seconds": settings.receive_wait_s,
        # After a long poll without messages the next one follows at once. A pause is needed only without long polls.
        "polling_interval": 0 if settings.receive_wait_s else 1.0,
        # Two layers of base64 make a message 1.8 times as large. JSON in JSON needs neither.
        "sqs_base64_encoding": False,
        "body_encoding": "utf-8",
        "fetch_message_attributes": {
            "MessageSystemAttributeNames": ["ApproximateReceiveCount", "SentTimestamp"],
            "MessageAttributeNames": list(CARRIED) if settings.tracing else [],
        },
    }
