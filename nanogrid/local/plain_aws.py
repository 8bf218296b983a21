"""S3 and SQS of the local stack by plain HTTP, for `nanogrid invoke`: importing botocore and reading its descriptions of both
services takes longer than everything else that the command does.

The rule: this is a short cut and nothing more. Whatever is not as usual, down to a missing bucket, is left to botocore.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from nanogrid.local.probes import ask, authorization

TIMEOUT_S = 10.0


class PlainAws:
    """The server of a local stack. It does not verify signatures, and has one account."""

    def __init__(self, port: int) -> None:
        self._port = port

    def store(self, bucket: str, key: str, archive: bytes) -> bool:
        """Put an object. False if that did not work."""
        headers = {"Authorization": authorization("s3")}
        return self._ask("PUT", f"/{quote(bucket, safe='')}/{quote(key)}", archive, headers) is not None

    def send(self, queue: str, body: str) -> bool:
        """Send a message to the queue of this name in SQS. False if that did not work."""
        url = self._sqs("GetQueueUrl", {"QueueName": queue}).get("QueueUrl")
        return url is not None and "MessageId" in self._sqs("SendMessage", {"QueueUrl": url, "MessageBody": body})

    def _sqs(self, action: str, parameters: dict[str, str]) -> dict[str, Any]:
        headers = {
            "Authorization": authorization("sqs"),
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AmazonSQS.{action}",
        }
        answer = self._ask("POST", "/", json.dumps(parameters).encode(), headers)
        try:
            found = json.loads(answer or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes | None:
        return ask(self._port, method, path, body, headers, TIMEOUT_S)
