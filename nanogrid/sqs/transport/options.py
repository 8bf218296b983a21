"""What the Celery app hands to the transport as `broker_transport_options`."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit

from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings
from nanogrid.telemetry.tracing import CARRIED

SETTINGS_OPTION = "nanogrid"
QUEUES_MAY_BE_MISSING = "nanogrid_queues_may_be_missing"
"""Of a connection: a queue that is not there is left to its polls, which go on trying."""


class SettingsReference:
    """Carries the settings to the transport without showing them.

    Transport options are printed by `celery report` and `inspect conf`, and their repr decides which connections share a
    pool: this one shows no value, and differs where a setting differs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]

    def __repr__(self) -> str:
        return f"<NanoGrid settings {self._digest}>"


def transport_options(settings: Settings) -> dict[str, Any]:
    """Celery's `broker_transport_options`.

    Raises ConfigurationError for a broker URL that names a host or credentials: the endpoint is a setting of its own, and
    credentials come from boto's chain, for the polling connection too.
    """
    url = urlsplit(settings.broker_url)
    if url.scheme != "sqs" or url.netloc or url.path.strip("/"):
        raise ConfigurationError(
            f"NANOGRID_BROKER_URL is a {url.scheme or 'bare'}: URL with more than, or other than, 'sqs://': leave it at 'sqs://', "
            "put another endpoint into NANOGRID_SQS_ENDPOINT_URL and credentials into the AWS environment"
        )
    return {
        SETTINGS_OPTION: SettingsReference(settings),
        "region": settings.region,
        "visibility_timeout": settings.visibility_timeout_s,
        "wait_time_seconds": settings.receive_wait_s,
        # A long poll that found nothing is followed by the next at once; only without long polls is there a pause.
        "polling_interval": 0 if settings.receive_wait_s else 1.0,
        # Two layers of base64 make a message 1.8 times as large; JSON in JSON needs neither.
        "sqs_base64_encoding": False,
        "body_encoding": "utf-8",
        "fetch_message_attributes": {
            "MessageSystemAttributeNames": ["ApproximateReceiveCount", "SentTimestamp"],
            "MessageAttributeNames": list(CARRIED) if settings.tracing else [],
        },
    }
