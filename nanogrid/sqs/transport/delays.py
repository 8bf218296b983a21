"""Requests for a later time, and messages that a worker received and never started.

The rule: SQS counts deliveries, and a dead letter means that so many *attempts* failed. A delivery that was no attempt is
undone: the message is sent again, with a new count, before the old one is deleted. If any step fails, the request exists once
or twice, and is never lost. If it exists twice, the claim of the request id lets one run, and the other returns its result.
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
"""SQS delays a message by this much at most. A request for a later time is sent again when the delay ends."""

LONGEST_WAIT_S = SQS_LONGEST_VISIBILITY_S
"""Longest time from sending to a request's `eta`. SQS can hide a message for this long if sending it again fails."""

LONGEST_HIDING_S = SQS_LONGEST_VISIBILITY_S - 60
"""SQS counts the hours from the delivery, which was some time before."""

ORIGINAL_HEADERS = "original_headers"
"""Key in kombu's payload for the headers as received, before Celery changes them. It is never sent."""

FAILURES = (ClientError, BotoCoreError, OSError, InvalidRequestError)


def parse_time(text: str) -> float:
    """A time in a Celery message as seconds since 1970, in UTC if it has no zone. Raises ValueError, OverflowError or OSError."""
    parsed = maybe_iso8601(text)
    if not isinstance(parsed, datetime):
        raise ValueError(f"{text!r} is not a time")  # noqa: TRY004  # the text is wrong, not its type
    seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
    datetime.fromtimestamp(seconds, timezone.utc)  # Celery converts it too
    return seconds


def due_in_s(headers: dict[str, Any]) -> float:
    """Seconds until a message's `eta`, 0 if it has passed or there is none. The `eta` was checked, or Celery made it."""
    eta = headers.get("eta")
    return max(0.0, parse_time(eta) - time.time()) if isinstance(eta, str) else 0.0


def sqs_delay_s(headers: dict[str, Any]) -> int:
    """The delay to send a message with: whole seconds, so that a worker waits for less than one.

    Raises InvalidRequestError if the `eta` is later than a request may wait.
    """
    seconds = due_in_s(headers)
    if seconds > LONGEST_WAIT_S:
        raise InvalidRequestError(
            "eta",
            f"{seconds / 3600:.1f} hours ahead is too late, a request may wait for {LONGEST_WAIT_S / 3600:g}: send it later",
        )
    return min(LONGEST_DELAY_S, int(seconds))


def keep_original_headers(payload: dict[str, Any]) -> None:
    """Store a received message's headers in its payload, for `resend`."""
    payload[ORIGINAL_HEADERS] = {name: value for name, value in payload["headers"].items() if name != RECEIVES_HEADER}


def resend(client: Any, url: str, handle: str, payload: dict[str, Any], delay_s: int = 0) -> bool:
    """Send a received message to its queue again, as if it had never been delivered, and delete the old one.

    Returns False if it could not be sent; the old message is unchanged then. Does not raise.
    """
    name = payload["headers"].get("id")
    properties = {key: value for key, value in payload["properties"].items() if key != "delivery_tag"}
    original = {**payload, "headers": payload[ORIGINAL_HEADERS], "properties": {**properties, "delivery_info": {}}}
    original.pop(ORIGINAL_HEADERS)
    try:
        client.send_message(QueueUrl=url, MessageBody=json.dumps(original), DelaySeconds=delay_s)
    except FAILURES as error:
        logger.warning("message %s could not be sent again, so this delivery counts as an attempt: %s", name, error)
        return False
    try:
        client.delete_message(QueueUrl=url, ReceiptHandle=handle)
    except FAILURES as error:
        logger.warning("message %s was sent again and not deleted, so it arrives twice and runs once: %s", name, error)
    return True


def postpone(client: Any, url: str, handle: str, payload: dict[str, Any]) -> None:
    """Return a message that arrived before its time to SQS until then. Does not raise.

    The message is hidden first, and only then sent again. If a later step fails, the old message does not return early and
    is not sent a second time.
    """
    seconds = due_in_s(payload["headers"])
    hidden_s = min(LONGEST_HIDING_S, math.ceil(seconds))
    try:
        client.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=hidden_s)
    except FAILURES as error:
        logger.warning(
            "message %s arrived before its time and could not be hidden: %s", payload["headers"].get("id"), error
        )
        return
    resend(client, url, handle, payload, min(LONGEST_DELAY_S, int(seconds)))
