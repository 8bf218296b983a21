"""Sends a request as a plain JSON object, as any program in any language may. Needs no Celery and no kombu."""

from __future__ import annotations

import json

from nanogrid.connections.sqs import sqs_client
from nanogrid.settings import Settings
from nanogrid.sqs.queues import find, resolve
from nanogrid.sqs.submission import Submission
from nanogrid.sqs.transport.size import refuse_large_message


def body_of(submission: Submission, settings: Settings) -> str:
    """The message of a request. Raises InvalidRequestError if it is too large."""
    text = json.dumps(submission.wire)
    refuse_large_message({"MessageBody": text}, settings.message_limit_bytes)
    return text


def send(body: str, queue: str, settings: Settings) -> None:
    """Send a message to a queue, which takes two calls.

    Raises ConfigurationError for a missing queue, and botocore's errors if SQS does not accept the message.
    """
    client = sqs_client(settings)
    # A queue that exists is used as it is: its workers have set its attributes.
    url = find(queue, settings, client) or resolve(queue, settings, client)
    client.send_message(QueueUrl=url, MessageBody=body)
