"""What `nanogrid invoke` and `nanogrid result` need of a producer, without Celery: one message, and one subscription.

The rule: it behaves as `nanogrid.Client` does, and raises the same errors. Importing Celery, its app and its
transport takes longer than the rest of the command.
"""

from __future__ import annotations

from typing import Any

from nanogrid.errors import ResultUnavailableError
from nanogrid.local.plain_aws import PlainAws
from nanogrid.result import ExecutionResult
from nanogrid.results.subscription import PENDING, Subscription
from nanogrid.settings import Settings
from nanogrid.sqs.plain_requests import body_of, send
from nanogrid.sqs.queues import sqs_name
from nanogrid.sqs.submission import Submission


class Producer:
    """Sends requests, and reads their results."""

    def __init__(self, settings: Settings, stack: PlainAws | None) -> None:
        """`stack` is the server of the local stack, if these settings are the stack's."""
        self._settings, self._stack = settings, stack
        self._subscription: tuple[str, Subscription] | None = None

    def submit(self, request: dict[str, Any]) -> str:
        """Send a request and return its id. Subscribes to its result before."""
        submission = Submission.of(request, self._settings)
        body = body_of(submission, self._settings)
        self._of(submission.task_id).begin()
        if not self._sent_to_stack(submission.queue, body):
            send(body, submission.queue, self._settings)
        return submission.task_id

    def wait(self, request_id: str, timeout_s: float | None = None) -> ExecutionResult:
        """Wait for a result. Raises ResultUnavailableError if there is none within `timeout_s` seconds."""
        found = self._of(request_id).wait(timeout_s)
        if found is None:
            raise ResultUnavailableError(
                f"request {request_id!r} has no result after {timeout_s:g} s; its state is {self.state(request_id)}"
            )
        return found

    def result(self, request_id: str) -> ExecutionResult:
        """The stored result. Raises ResultUnavailableError if there is none."""
        found = self._of(request_id).result()
        if found is None:
            state = self.state(request_id)
            hint = "unknown, not started or expired" if state == PENDING else f"state {state}"
            raise ResultUnavailableError(f"request {request_id!r} has no result: {hint}")
        return found

    def state(self, request_id: str) -> str:
        """Celery's state of the request."""
        return self._of(request_id).state()

    def close(self) -> None:
        """Close the connection to Redis."""
        if self._subscription is not None:
            self._subscription[1].close()

    def _sent_to_stack(self, queue: str, body: str) -> bool:
        """Send without botocore if that is possible. A message that is sent once more then has the same request id."""
        if self._stack is None or queue in self._settings.queue_urls:
            return False
        return self._stack.send(sqs_name(queue, self._settings), body)

    def _of(self, request_id: str) -> Subscription:
        if self._subscription is None or self._subscription[0] != request_id:
            self.close()
            self._subscription = request_id, Subscription(self._settings, request_id)
        return self._subscription[1]
