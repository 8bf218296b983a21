"""Refuses messages that are too large for SQS, before they are sent.

The rule: the size counts after all encoding: the bytes of the body and of the message attributes.
"""

from __future__ import annotations

from typing import Any

from nanogrid.errors import InvalidRequestError


def message_size_bytes(parameters: dict[str, Any]) -> int:
    """The size of SendMessage's parameters in bytes as SQS counts it: the body, and name, type and value of each attribute."""
    total = len(parameters.get("MessageBody", "").encode())
    for name, attribute in (parameters.get("MessageAttributes") or {}).items():
        total += len(name.encode()) + len(attribute.get("DataType", "").encode())
        total += len(attribute.get("StringValue", "").encode()) + len(attribute.get("BinaryValue", b""))
    return total


def refuse_large(parameters: dict[str, Any], limit_bytes: int) -> None:
    """Raise InvalidRequestError if SendMessage's parameters are over the limit."""
    size_bytes = message_size_bytes(parameters)
    if size_bytes > limit_bytes:
        raise InvalidRequestError(
            "",
            f"the message has {size_bytes} bytes and {limit_bytes} are allowed: put large data (payload or stdin) in S3 and send its address",
        )


def refuse_large_messages(client: Any, limit_bytes: int) -> None:
    """Make a boto3 SQS client raise InvalidRequestError for messages over the limit."""

    def check(params: dict[str, Any], **_: Any) -> None:
        refuse_large(params, limit_bytes)

    client.meta.events.register("provide-client-params.sqs.SendMessage", check)
