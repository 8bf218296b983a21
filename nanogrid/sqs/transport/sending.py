"""Sends many messages with few calls: up to ten, and up to the size of a message, with each.

The rule: nothing is sent before all messages of a block are complete, and each message is sent once. What SQS refuses for
reasons of its own is sent again, alone; what it has accepted is not. What was not sent is reported by its task id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from nanogrid.errors import SubmissionError
from nanogrid.sqs.transport.batches import BATCH
from nanogrid.sqs.transport.size import message_size_bytes, refuse_large_message

ATTEMPTS = 4
FIRST_PAUSE_S = 0.1
"""The pause before an entry is sent again, and twice as long before each further attempt."""


@dataclass(frozen=True)
class Entry:
    """One message: its task id, SendMessage's parameters, and what to tell of an error with which SQS refuses the call."""

    task_id: str
    parameters: dict[str, Any]
    on_refusal: Callable[[ClientError], None]

    @property
    def url(self) -> str:
        """The queue's URL."""
        return str(self.parameters["QueueUrl"])

    def numbered(self, number: int) -> dict[str, Any]:
        """The message as an entry of a batch."""
        return {"Id": str(number), **{name: value for name, value in self.parameters.items() if name != "QueueUrl"}}


@dataclass
class Collected:
    """The messages of a block, in order."""

    client: Any = None
    limit_bytes: int = 0
    entries: list[Entry] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, entry: Entry, client: Any, limit_bytes: int) -> None:
        """Keep a message. Raises InvalidRequestError if it is too large."""
        refuse_large_message(entry.parameters, limit_bytes)
        self.client, self.limit_bytes = client, limit_bytes
        self.entries.append(entry)

    def send(self) -> None:
        """Send all. Raises SubmissionError if some were not sent."""
        for batch in self._batches():
            try:
                self._send(batch)
            except (ClientError, BotoCoreError, OSError) as error:  # boto has repeated the call in vain
                if isinstance(error, ClientError):
                    batch[0].on_refusal(error)
                known = {*self.sent, *self.failed}
                self.failed |= {each.task_id: str(error) for each in self.entries if each.task_id not in known}
                break
        if self.failed:
            raise SubmissionError(self.sent, self.failed)

    def _batches(self) -> Iterator[list[Entry]]:
        """Messages of one queue that follow each other, as many as fit."""
        batch: list[Entry] = []
        size_bytes = 0
        for entry in self.entries:
            more_bytes = message_size_bytes(entry.parameters)
            if batch and (
                len(batch) == BATCH or entry.url != batch[0].url or size_bytes + more_bytes > self.limit_bytes
            ):
                yield batch
                batch, size_bytes = [], 0
            batch.append(entry)
            size_bytes += more_bytes
        if batch:
            yield batch

    def _send(self, batch: list[Entry]) -> None:
        """Send a batch, and what was refused of it again, unless the message is the reason."""
        left = batch
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            entries = [entry.numbered(number) for number, entry in enumerate(left)]
            answer = self.client.send_message_batch(QueueUrl=left[0].url, Entries=entries)
            failed = {int(each["Id"]): each for each in answer.get("Failed") or ()}
            self.sent += [entry.task_id for number, entry in enumerate(left) if number not in failed]
            for number, each in failed.items():
                if each.get("SenderFault") or attempt == ATTEMPTS - 1:
                    self.failed[left[number].task_id] = str(each.get("Message") or each.get("Code"))
            left = [entry for number, entry in enumerate(left) if number in failed and entry.task_id not in self.failed]
            if not left:
                return


_collected: ContextVar[Collected | None] = ContextVar("collected", default=None)


def collected() -> Collected | None:
    """The block that this thread is in, or None."""
    return _collected.get()


@contextmanager
def sent_together() -> Iterator[Collected]:
    """Keep the messages that this thread sends in the block, and send them at its end; none if the block raises."""
    block = Collected()
    token = _collected.set(block)
    try:
        yield block
    finally:
        _collected.reset(token)
    block.send()


class Collector:
    """Stands for the blocking client within a block: keeps messages instead of sending them."""

    def __init__(
        self, block: Collected, task_id: str, on_refusal: Callable[[ClientError], None], client: Any, limit_bytes: int
    ) -> None:
        self._block, self._task_id, self._on_refusal = block, task_id, on_refusal
        self._client, self._limit_bytes = client, limit_bytes

    def send_message(self, **parameters: Any) -> None:
        """Keep a message."""
        self._block.add(Entry(self._task_id, parameters, self._on_refusal), self._client, self._limit_bytes)
