"""Keeps messages invisible in SQS for as long as the worker holds them.

The rule: the heartbeat runs in its own thread. The event loop may wait for Redis, and during a warm shutdown it runs no timers;
a message whose invisibility ends then would run twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from nanogrid.sqs.transport.batches import failures, in_tens

logger = logging.getLogger(__name__)

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


@dataclass
class Held:
    """A held message: its queue's URL, and when its invisibility was last renewed or began, by the monotonic clock."""

    queue_url: str
    renewed_at: float


class HeldMessages:
    """Receipt handles of the messages this worker holds. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    def add(self, queue_url: str, handle: str) -> None:
        """Keep this message invisible from now on."""
        with self._lock:
            self._held.setdefault(handle, Held(queue_url, monotonic()))

    def discard(self, handle: str) -> None:
        """Stop keeping a message invisible: it is done or given back."""
        with self._lock:
            self._held.pop(handle, None)

    def renewed(self, handles: list[str]) -> None:
        """The invisibility of these messages begins again now."""
        with self._lock:
            for handle in handles:
                if handle in self._held:
                    self._held[handle].renewed_at = monotonic()

    def __contains__(self, handle: str) -> bool:
        with self._lock:
            return handle in self._held

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def batches(self, least_age_s: float = 0.0) -> list[tuple[str, list[str]]]:
        """The messages that were renewed at least this long ago, as pairs of a queue URL and at most ten handles.

        Room in a batch is filled with younger ones: they are then due together with the others.
        """
        with self._lock:
            held = sorted(self._held.items(), key=lambda item: item[1].renewed_at)
        due_until = monotonic() - least_age_s
        by_queue: dict[str, list[tuple[str, Held]]] = {}
        for handle, each in held:
            by_queue.setdefault(each.queue_url, []).append((handle, each))
        return [
            (url, [handle for handle, _ in part])
            for url, of_queue in by_queue.items()
            for part in in_tens(of_queue)
            if part[0][1].renewed_at <= due_until
        ]


class VisibilityHeartbeat:
    """Renews the invisibility of each held message within `interval_s` seconds, again and again, in a daemon thread.

    It looks twice in that time and leaves out messages that are younger than half of it, so that short runs cost no call.
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
        wait_s = self._interval_s / 2
        while not self._stopped.wait(wait_s):
            wait_s = self._interval_s / (2 if self.beat() else 5)

    def beat(self) -> bool:
        """Renew what is due. Returns False if a whole request failed; a message that SQS no longer has is only logged."""
        due = self._held.batches(self._interval_s / 2)
        extended = [self._extend(queue_url, handles) for queue_url, handles in due]
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
        self._held.renewed(handles)
        for handle, reason in failures(answer, handles):
            if handle in self._held:  # else it was finished during the request
                logger.warning("a held message of %s is not kept invisible and may run twice: %s", queue_url, reason)
        return True
