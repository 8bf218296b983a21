"""Deletes the messages of finished tasks, up to ten with one call.

The rule: only what is acknowledged comes here, so its result is stored. Until SQS has deleted a message, it is held like one
that runs: the heartbeat keeps it invisible. If the worker is killed before, the message arrives again and is answered with the
stored result. A thread of its own sends the calls, so that the event loop waits for none of them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from nanogrid.sqs.transport.batches import BATCH, failures
from nanogrid.sqs.transport.visibility import HeldMessages

logger = logging.getLogger(__name__)

LINGER_S = 0.2
"""How long a message of a busy worker waits for others, to be deleted with them."""

FAREWELL_S = 30.0
"""How long a closing channel waits for its deletions. A call of the client ends within this time."""


class Finished(NamedTuple):
    """A message to delete."""

    url: str
    handle: str
    name: str


class Deletions:
    """Messages that wait to be deleted, in order, and the thread that deletes them. Safe from any thread."""

    def __init__(self, held: HeldMessages, client: Callable[[], Any], linger_s: float = LINGER_S) -> None:
        self._held, self._client, self._linger_s = held, client, linger_s
        self._changed = threading.Condition()
        self._waiting: deque[Finished] = deque()
        self._deleting: list[Finished] = []
        self._hurry = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, message: Finished, *, hurry: bool) -> None:
        """Delete a message soon; with `hurry` at once, and all that wait."""
        with self._changed:
            self._waiting.append(message)
            self._hurry = self._hurry or hurry
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sqs-deletions", daemon=True)
                self._thread.start()
            if self._hurry or len(self._waiting) in (1, BATCH):  # else the thread knows enough
                self._changed.notify_all()

    def __contains__(self, handle: str) -> bool:
        with self._changed:
            return any(each.handle == handle for each in (*self._deleting, *self._waiting))

    def flush(self, timeout_s: float = FAREWELL_S) -> None:
        """Delete all that wait, and return when that is done, or after this time."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._waiting and not self._deleting, timeout_s):
                logger.warning("%d message(s) are done but not deleted yet, so they arrive again", len(self._waiting))

    def close(self, timeout_s: float = FAREWELL_S) -> None:
        """Flush, and let the thread end. A message that is added later gets a thread that ends as soon as none waits."""
        with self._changed:
            self._closed = True
        self.flush(timeout_s)

    def _run(self) -> None:
        while batch := self._next():
            self._delete(batch)
            with self._changed:
                self._deleting = []
                self._changed.notify_all()

    def _next(self) -> list[Finished]:
        """Wait for messages, then for more of them. Returns the first ones, of one queue and ten at most; none if this thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                self._thread = None
                return []
            self._changed.wait_for(lambda: self._hurry or len(self._waiting) >= BATCH, self._linger_s)
            url = self._waiting[0].url
            self._deleting = [each for each in self._waiting if each.url == url][:BATCH]
            taken = set(self._deleting)
            self._waiting = deque(each for each in self._waiting if each not in taken)
            self._hurry = self._hurry and bool(self._waiting)
            return self._deleting

    def _delete(self, batch: list[Finished]) -> None:
        entries = [{"Id": str(number), "ReceiptHandle": each.handle} for number, each in enumerate(batch)]
        try:
            answer = self._client().delete_message_batch(QueueUrl=batch[0].url, Entries=entries)
            failed = dict(failures(answer, batch))
        except Exception as error:  # noqa: BLE001  # this thread must go on, and whatever it could not delete arrives again
            failed = dict.fromkeys(batch, str(error))
        for message, reason in failed.items():
            logger.warning("message %s is done but was not deleted, so it arrives again: %s", message.name, reason)
        for message in batch:
            self._held.discard(message.handle)
