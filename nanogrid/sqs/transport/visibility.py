"""Keeps messages invisible in SQS for as long as the worker holds them.

The rule: the heartbeat runs in its own thread. The event loop may wait for Redis, and during a warm shutdown it runs no timers;
a message whose invisibility ends then would run twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

logger = logging.getLogger(__name__)

BATCH = 10
"""Most entries of one ChangeMessageVisibilityBatch."""

PATIENT_RECEIVES = 20
LONGEST_RETURN_DELAY_S = 900


def return_delay_s(receives: int) -> int:
    """How many seconds a message that is given back stays invisible.

    0 at first, so that it reaches another worker, or its dead-letter queue, at once. A queue without a redrive policy would
    deliver it for ever, so after `PATIENT_RECEIVES` deliveries the time doubles with each one, up to 15 minutes.
    """
    if receives <= PATIENT_RECEIVES:
        return 0
    return int(min(LONGEST_RETURN_DELAY_S, 2 ** min(receives - PATIENT_RECEIVES, 10)))


class HeldMessages:
    """Receipt handles of the messages this worker holds, by queue URL. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue_of: dict[str, str] = {}

    def add(self, queue_url: str, handle: str) -> None:
        """Keep this message invisible from now on."""
        with self._lock:
            self._queue_of[handle] = queue_url

    def discard(self, handle: str) -> None:
        """Stop keeping a message invisible: it is done or given back."""
        with self._lock:
            self._queue_of.pop(handle, None)

    def __contains__(self, handle: str) -> bool:
        with self._lock:
            return handle in self._queue_of

    def __len__(self) -> int:
        with self._lock:
            return len(self._queue_of)

    def batches(self) -> list[tuple[str, list[str]]]:
        """All held messages as pairs of a queue URL and at most ten handles."""
        with self._lock:
            held = list(self._queue_of.items())
        by_queue: dict[str, list[str]] = {}
        for handle, queue_url in held:
            by_queue.setdefault(queue_url, []).append(handle)
        return [(url, part) for url, handles in by_queue.items() for part in _parts(handles)]


def _parts(handles: list[str]) -> Iterator[list[str]]:
    rest = iter(handles)
    while part := list(islice(rest, BATCH)):
        yield part


class VisibilityHeartbeat:
    """Renews the invisibility of all held messages every `interval_s` seconds, in a daemon thread.

    After a failed beat the next one follows after a fifth of the interval, so that one lost beat costs no message. Starting
    twice and stopping twice are harmless.
    """

    def __init__(self, held: HeldMessages, client: Callable[[], Any], interval_s: float, timeout_s: int) -> None:
        self._held, self._client, self._interval_s, self._timeout_s = held, client, interval_s, timeout_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Does nothing if the interval is 0."""
        if self._interval_s and self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._run, name="sqs-visibility-heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop soon. Does not wait for a beat that is running."""
        self._stopped.set()

    def _run(self) -> None:
        wait_s = self._interval_s
        while not self._stopped.wait(wait_s):
            wait_s = self._interval_s if self.beat() else self._interval_s / 5

    def beat(self) -> bool:
        """Renew once. Returns False if a whole request failed; a message that SQS no longer has is only logged."""
        extended = [self._extend(queue_url, handles) for queue_url, handles in self._held.batches()]
        return all(extended)

    def _extend(self, queue_url: str, handles: list[str]) -> bool:
        entries = [
            {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": self._timeout_s}
            for number, handle in enumerate(handles)
        ]
        try:
            answer = self._client().change_message_visibility_batch(QueueUrl=queue_url, Entries=entries)
        except (ClientError, BotoCoreError, OSError) as error:
            logger.warning("could not keep %d message(s) of %s invisible: %s", len(handles), queue_url, error)
            return False
        for failed in answer.get("Failed", ()):
            if handles[int(failed["Id"])] in self._held:  # else it was finished during the request
                logger.warning(
                    "a held message of %s is not kept invisible and may run twice: %s",
                    queue_url,
                    failed.get("Message") or failed.get("Code"),
                )
        return True
