"""Messages that other AWS services send to a queue: their names, for error messages, and the request inside an SNS notification.

The rule: pure functions that accept any object and do not raise.
"""

from __future__ import annotations

from typing import Any

NAMES_NO_FUNCTION = "and names no function"


def message_of_sns(data: dict[str, Any]) -> str | None:
    """The published message inside an SNS notification without raw message delivery; None for anything else."""
    if data.get("Type") != "Notification" or not isinstance(data.get("TopicArn"), str):
        return None
    message = data.get("Message")
    return message if isinstance(message, str) else None


def aws_event_problem(data: dict[str, Any]) -> str | None:
    """What an event is and what to configure, in one sentence; None if it is not a known event."""
    if message_of_sns(data) is not None:
        return (
            "this is an SNS notification, and its Message is not a request: publish a request's JSON, with or without raw "
            "message delivery"
        )
    if data.get("Type") in ("SubscriptionConfirmation", "UnsubscribeConfirmation") and "TopicArn" in data:
        return f"this is SNS' {data['Type']}: confirm the subscription at its SubscribeURL; no request is lost"
    if data.get("Service") == "Amazon S3" and data.get("Event") == "s3:TestEvent":
        return f"this is S3's test of its notifications, {NAMES_NO_FUNCTION}: {_OWN_CONSUMER}"
    if "detail-type" in data and "detail" in data and "source" in data:
        return (
            f"this is an EventBridge event, {NAMES_NO_FUNCTION}: give the rule's target an input transformer that creates "
            "a request"
        )
    source = _source_of_records(data)
    if source is None:
        return None
    what = "an S3 event notification" if source == "aws:s3" else f"an event of {source:.80}"
    return f"this is {what}, {NAMES_NO_FUNCTION}: {_OWN_CONSUMER}"


_OWN_CONSUMER = (
    "send a request with the event as its payload, for example through EventBridge with an input transformer"
)


def _source_of_records(data: dict[str, Any]) -> str | None:
    records = data.get("Records")
    first = records[0] if isinstance(records, list) and records else None
    source = first.get("eventSource", first.get("EventSource")) if isinstance(first, dict) else None
    return source if isinstance(source, str) else None
