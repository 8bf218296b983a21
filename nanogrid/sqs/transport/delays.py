"""What waits for its time waits in SQS, not in a worker; and what a worker never began costs no delivery.

The rule: SQS counts deliveries, and a dead letter means that so many *attempts* failed. A delivery that was no attempt is undone
by sending the message anew, with a count of its own, before the old one is deleted. Whichever step fails, the request is there
once or twice, never not at all; of two, the claim of the request id lets one run, and the other gets its result.
"""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import datetime, timezone
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from celery.utils.time import maybe_iso8601

from nanogrid.errors import InvalidRequestError
from nanogrid.settings import SQS_LONGEST_VISIBILITY_S
from nanogrid.wire.names import RECEIVES_HEADER

logger = logging.getLogger(__name__)

LONGEST_DELAY_S = 900
"""SQS keeps a message back for no longer; for more, it is sent anew when that is over."""

LONGEST_WAIT_S = SQS_LONGEST_VISIBILITY_S
"""Of a request. For as long as that SQS can hide the message that came early, should sending it anew fail."""

LONGEST_HIDING_S = SQS_LONGEST_VISIBILITY_S - 60
"""SQS counts the hours from when it gave the message out."""

AS_SENT = "as_sent"
"""In kombu's payload: its headers, before Celery writes into them."""

FAILURES = (ClientError, BotoCoreError, OSError, InvalidRequestError)


def moment(text: str) -> float:
    """A time in a Celery message as seconds since 1970; without a zone it is UTC. Raises ValueError, OverflowError or OSError."""
    parsed = maybe_iso8601(text)
    if not isinstance(parsed, datetime):
        raise ValueError(f"{text!r} is no time")  # noqa: TRY004  # a text that is none
    seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
    datetime.fromtimestamp(seconds, timezone.utc)  # Celery converts it too
    return seconds


def wait_s(headers: dict[str, Any]) -> float:
    """Seconds until a message's time comes, 0 where it has come. Its `eta` has been checked, or was made by Celery."""
    eta = headers.get("eta")
    return max(0.0, moment(eta) - time.time()) if isinstance(eta, str) else 0.0


def delay_s(headers: dict[str, Any]) -> int:
    """How long SQS is to keep a message back: whole seconds, so that a worker waits for less than one.

    Raises InvalidRequestError for more than a request may wait.
    """
    seconds = wait_s(headers)
    if seconds > LONGEST_WAIT_S:
        raise InvalidRequestError(
            "eta",
            f"{seconds / 3600:.1f} hours ahead are more than the {LONGEST_WAIT_S / 3600:g} for which a request may wait: "
            "send it later",
        )
    return min(LONGEST_DELAY_S, int(seconds))


def keep_as_sent(payload: dict[str, Any]) -> None:
    """Remember what a received message's headers were."""
    payload[AS_SENT] = {name: value for name, value in payload["headers"].items() if name != RECEIVES_HEADER}


def send_anew(client: Any, url: str, handle: str, payload: dict[str, Any], delay_s: int = 0) -> bool:
    """Put a received message into its queue once more, as if it had never been delivered, and delete the old one.

    False: it could not be sent, and the old one is as it was. Does not raise.
    """
    name = payload["headers"].get("id")
    properties = {key: value for key, value in payload["properties"].items() if key != "delivery_tag"}
    whole = {**payload, "headers": payload[AS_SENT], "properties": {**properties, "delivery_info": {}}}
    whole.pop(AS_SENT)
    try:
        client.send_message(QueueUrl=url, MessageBody=json.dumps(whole), DelaySeconds=delay_s)
    except FAILURES as error:
        logger.warning("message %s could not be sent anew, so this delivery counts: %s", name, error)
        return False
    try:
        client.delete_message(QueueUrl=url, ReceiptHandle=handle)
    except FAILURES as error:
        logger.warning("message %s was sent anew and not deleted, so it comes twice and runs once: %s", name, error)
    return True


def put_off(client: Any, url: str, handle: str, payload: dict[str, Any]) -> None:
    """Let a message that came before its time wait in SQS. Does not raise.

    It is hidden until then, and only then sent anew: where one of the later steps fails, the old one does not come back
    early, to be sent once more.
    """
    seconds = wait_s(payload["headers"])
    hidden_s = min(LONGEST_HIDING_S, math.ceil(seconds))
    try:
        client.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=hidden_s)
    except FAILURES as error:
        logger.warning("message %s came too early and could not be hidden: %s", payload["headers"].get("id"), error)
        return
    send_anew(client, url, handle, payload, min(LONGEST_DELAY_S, int(seconds)))
