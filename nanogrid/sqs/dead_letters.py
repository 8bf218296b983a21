"""Stores results for requests that ended in a dead-letter queue, so that no producer waits for ever.

The rule: messages stay in the dead-letter queue unchanged, for the operators; only results are written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import NanoGridError
from nanogrid.request import id_refusal
from nanogrid.settings import Settings
from nanogrid.sqs import queues
from nanogrid.sqs.transport.envelopes import (
    BareRequest,
    CeleryEnvelope,
    Garbage,
    bare_request_id,
    context_of,
    is_ours,
    problem_of,
    read_body,
    request_of,
)

logger = logging.getLogger(__name__)

HIDDEN_S = 60
"""A scan hides messages for this long. If the reader dies, they become visible again by then."""

LARGEST_SCAN = 10_000
FULL_SCAN_EVERY_S = 600.0
"""Counts are approximate and one message may replace another, so all messages are read again this often."""


@dataclass(frozen=True)
class DeadRequest:
    """A request whose message is in a dead-letter queue, the reason, and Celery's context of the message ({} for a bare one)."""

    request_id: str
    function_id: str
    reason: str
    context: dict[str, Any]


Answer = Callable[[DeadRequest], bool]
"""Stores a failure for the request unless a final result exists. Returns True if it stored one."""


@dataclass
class Scan:
    """Numbers of one scan: messages read, failures stored, messages without a request."""

    read: int = 0
    answered: int = 0
    garbage: int = 0


@dataclass
class _QueueMemory:
    """The messages of one dead-letter queue that this process has handled, and when it last read them all."""

    message_ids: set[str] = field(default_factory=set)
    read_at: float = float("-inf")


class DeadLetterReader:
    """Reads the dead-letter queues of `queue_names` (default: the queues of all runtimes). Not thread-safe.

    `answer` is called once per message and process. It must not replace a final result: other workers read the same queues.
    """

    def __init__(self, settings: Settings, answer: Answer, queue_names: Sequence[str] | None = None) -> None:
        self._settings, self._answer = settings, answer
        self._names = list(queue_names if queue_names is not None else settings.runtime_table.queues())
        self._known: dict[str, _QueueMemory] = {}
        self._urls: dict[str, str] = {}
        self._boto: Any = None

    def scan(self) -> Scan:
        """Read each dead-letter queue once. Does not raise: failures are logged, and the next scan tries again."""
        found = Scan()
        for name in self._names:
            self._scan_or_log(name, found)
        return found

    def _scan_or_log(self, name: str, found: Scan) -> None:
        try:
            self._scan_queue(name, found)
        except (ClientError, BotoCoreError, OSError, NanoGridError) as error:
            self._urls.pop(name, None)
            logger.warning("the dead-letter queue of %s could not be read: %s", name, error)

    @property
    def _client(self) -> Any:
        if self._boto is None:
            self._boto = sqs_client(self._settings)
        return self._boto

    def _scan_queue(self, name: str, found: Scan) -> None:
        url = self._dead_letter_url(name)
        if url is None:
            return
        known = self._known.setdefault(url, _QueueMemory())
        waiting = self._count(url)
        if waiting == 0:
            known.message_ids.clear()
            return
        if waiting == len(known.message_ids) and time.monotonic() - known.read_at < FULL_SCAN_EVERY_S:
            return
        self._read_all(url, name, known, found)

    def _dead_letter_url(self, name: str) -> str | None:
        if name not in self._urls:
            url = queues.dead_letter_url(queues.resolve(name, self._settings, self._client), self._client)
            if url is None:
                return None
            self._urls[name] = url
        return self._urls[name]

    def _count(self, url: str) -> int:
        attribute = "ApproximateNumberOfMessages"
        answer = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=[attribute])
        return int(answer["Attributes"][attribute])

    def _read_all(self, url: str, name: str, known: _QueueMemory, found: Scan) -> None:
        """Hide each message as it is read, so that each is read once; make all visible again at the end."""
        hidden: list[str] = []
        present: set[str] = set()
        deadline = time.monotonic() + HIDDEN_S / 2
        try:
            while len(hidden) < LARGEST_SCAN and time.monotonic() < deadline and (messages := self._receive(url)):
                hidden += [message["ReceiptHandle"] for message in messages]
                for message in messages:
                    found.read += 1
                    if message["MessageId"] in known.message_ids or self._handle(message, url, name, found):
                        present.add(message["MessageId"])
            known.message_ids, known.read_at = present, time.monotonic()
        finally:
            self._show(url, hidden)

    def _receive(self, url: str) -> list[dict[str, Any]]:
        answer = self._client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=HIDDEN_S,
            WaitTimeSeconds=1,
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def _handle(self, message: dict[str, Any], url: str, name: str, found: Scan) -> bool:
        """Answer one message that is new to this process. Returns False if that failed and must be tried again."""
        queue_name = url.rpartition("/")[2]
        reason = f"the request did not complete: every delivery failed, and its message is in the dead-letter queue {queue_name}"
        dead = _dead_request(message, reason, name, self._settings)
        if isinstance(dead, str):
            found.garbage += 1
            logger.warning("message %s in %s %s", message["MessageId"], queue_name, dead)
            return True
        try:
            found.answered += bool(self._answer(dead))
        except Exception:  # whatever the store raises
            logger.exception("request %s in %s could not be answered", dead.request_id, queue_name)
            return False
        return True

    def _show(self, url: str, handles: list[str]) -> None:
        for start in range(0, len(handles), 10):
            entries = [
                {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                for number, handle in enumerate(handles[start : start + 10])
            ]
            self._client.change_message_visibility_batch(QueueUrl=url, Entries=entries)


def _dead_request(message: dict[str, Any], reason: str, queue: str, settings: Settings) -> DeadRequest | str:
    """A message of a queue's dead-letter queue as a request, or why it must not be answered."""
    body = read_body(message["Body"])
    context: dict[str, Any] = {}
    if isinstance(body, BareRequest):
        request_id, request = bare_request_id(body.request, message["MessageId"], queue, settings), body.request
    elif isinstance(body, Garbage) and body.request is not None:
        request_id, request = bare_request_id(body.request, message["MessageId"], queue, settings), body.request
        reason = f"{reason}: {body.problem}"
    elif isinstance(body, CeleryEnvelope) and is_ours(body):
        request_id, request = body.headers["id"], request_of(body) or {}
        if (foreign := id_refusal(request_id, queue, settings)) is not None:
            return f"is not answered: {foreign}"
        if (problem := problem_of(body, queue, settings)) is None:
            context = context_of(body)
        else:
            reason = f"{reason}: {problem}"
    else:
        return "holds no NanoGrid request"
    function_id = request.get("functionId")
    return DeadRequest(request_id, function_id if isinstance(function_id, str) else "", reason, context)
