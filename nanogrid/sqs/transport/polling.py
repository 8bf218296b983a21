"""Asynchronous polls that always end: with messages, with none, or with a `PollFailure`. They never raise.

kombu's own connection has no time limit on a poll, treats a server error as an empty answer without logging it, and raises
for every other status, which ends the worker.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from kombu.asynchronous.aws.connection import AsyncHTTPSConnection

from nanogrid.sqs.transport.kombu_private import PollHooks

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
CONNECT_TIMEOUT_S = 5
GRACE_S = 10
"""A poll may take this much longer than the long-poll time. Then it counts as failed."""

MOST_POLLS = 100
"""Most polls at the same time, one per queue of the worker. kombu's default of 10 would starve the eleventh queue."""


class PollFailure(NamedTuple):
    """A poll that returned neither messages nor the answer that there are none."""

    reason: str
    code: str = ""

    @property
    def queue_is_gone(self) -> bool:
        """Whether SQS answered that the queue does not exist."""
        return "QueueDoesNotExist" in self.code or "NonExistentQueue" in self.code


class Backoff:
    """Waiting times that double from 1 to 30 s while attempts fail."""

    def __init__(self) -> None:
        self.failures = 0

    def failed(self) -> float:
        """Count a failure and return the seconds to wait before the next attempt."""
        self.failures += 1
        return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self.failures - 1, 10))

    def succeeded(self) -> int:
        """Reset, and return the number of failures since the last success."""
        failures, self.failures = self.failures, 0
        return failures


class BoundedConnection(AsyncHTTPSConnection):
    """An HTTP request that ends `limit_s` seconds after its start, whatever the server does."""

    def __init__(self, http_client: Any, limit_s: float) -> None:
        super().__init__(http_client=http_client)
        self.limit_s = limit_s

    def getrequest(self) -> Any:
        """kombu's request, with time limits that curl enforces and the CA file that boto uses."""
        request = super().getrequest()
        request.on_prepare = self._limit
        request.ca_certs = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or request.ca_certs
        return request

    def _limit(self, curl: Any) -> None:
        import pycurl

        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.CONNECTTIMEOUT, CONNECT_TIMEOUT_S)
        curl.setopt(pycurl.TIMEOUT_MS, int(self.limit_s * 1000))


class PollingConnection(PollHooks):
    """kombu's asynchronous SQS connection, with polls that always end and never raise."""

    def __init__(self, client: Any, http_client: Any, wait_s: int, attributes: dict[str, Any]) -> None:
        super().__init__(
            sqs_connection=client,
            http_client=http_client,
            message_system_attribute_names=attributes["MessageSystemAttributeNames"],
            message_attribute_names=attributes["MessageAttributeNames"],
        )
        self._limit_s = wait_s + GRACE_S

    def get_http_connection(self) -> Any:
        """A connection per request, as in kombu. curl keeps the sockets open."""
        return BoundedConnection(self.http_client, self._limit_s)

    def poll_response(self, response: Any) -> dict[str, Any] | PollFailure:
        """The messages of one answer, or why there are none."""
        return read_answer(response.status, response.read(), response.reason)


def read_answer(status: int, body: bytes | None, reason: str = "") -> dict[str, Any] | PollFailure:
    """The answer to ReceiveMessage, whose `Messages` all have a body, an id and a receipt handle; or why it is none."""
    try:
        answer = json.loads(body or b"")
    except (ValueError, RecursionError):
        answer = None
    if status != 200:
        return _refusal(status, answer, reason)
    if not isinstance(answer, dict):
        return PollFailure(
            "the answer is not the JSON object that SQS sends: check that NANOGRID_SQS_ENDPOINT_URL is the address of SQS"
        )
    messages = answer.get("Messages") or []
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        return PollFailure("the answer has messages without body, id or receipt handle")
    return {"Messages": messages}


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(name), str) for name in ("Body", "MessageId", "ReceiptHandle")
    )


def _refusal(status: int, answer: object, reason: str) -> PollFailure:
    if status == 599:  # curl's own errors: refused, reset, timed out
        return PollFailure(reason or "no connection")
    if not isinstance(answer, dict):
        return PollFailure(f"HTTP {status}")
    code = str(answer.get("__type", "")).rpartition("#")[2]
    message = answer.get("message") or answer.get("Message") or ""
    return PollFailure(": ".join(str(part) for part in (f"HTTP {status}", code, message) if part), code)
