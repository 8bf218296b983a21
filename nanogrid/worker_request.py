"""The main process's view of one task: what is stored when a child cannot store it any more.

The rule: a child that was killed (hard limit, revoke) leaves an ExecutionResult behind like any other run. Celery would
store an exception here, that other languages cannot read and chords would stumble over.
"""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import TimeLimitExceeded
from celery import signals
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request

from nanogrid.result import ExecutionResult, Outcome, not_run

log = get_logger(__name__)


class WorkerRequest(Request):
    """A task that is executed by a child of this worker."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A child that failed. After Celery's hard time limit it is dead, and only this process can answer for it."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if not isinstance(error, TimeLimitExceeded):
            return super().on_failure(exc_info, send_failed_event, return_ok)
        state.task_ready(self)
        limit_s = error.args[0]
        log.error("request %s: killed after Celery's hard time limit of %g s", self.id, limit_s)
        self._store(Outcome.NOT_RUN, f"the worker child did not end within Celery's hard time limit of {limit_s:g} s")
        self.send_event("task-failed", exception=f"hard time limit ({limit_s:g} s)", traceback="")
        self.acknowledge()
        return None

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """The soft limit is the child's to handle; the hard one came by `on_failure` just before."""
        if soft:
            super().on_timeout(soft, timeout)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Revoked before or during the run, or expired in the queue."""
        state.task_ready(self)
        self.send_event("task-revoked", terminated=terminated, signum=signum, expired=expired)
        if expired:
            self._store(Outcome.NOT_RUN, "the request expired before its turn came")
        else:
            self._store(Outcome.CANCELLED, "cancelled " + ("while it ran" if terminated else "before it ran"))
        self.acknowledge()
        self._already_revoked = True
        signals.task_revoked.send(
            sender=self.task, request=self._context, terminated=terminated, signum=signum, expired=expired
        )

    def _store(self, outcome: Outcome, reason: str) -> None:
        result = self._result(outcome, reason)
        self.task.backend.mark_as_done(self.id, result.to_wire(), request=self._context, store_result=True)

    def _result(self, outcome: Outcome, reason: str) -> ExecutionResult:
        request = next((argument for argument in self.args if isinstance(argument, dict)), {})
        function_id = request.get("functionId")
        return not_run(
            self.id,
            function_id if isinstance(function_id, str) else "",
            reason,
            outcome=outcome,
            worker=self.hostname,
            attempt=int(self.request_dict.get("retries") or 0) + 1,
        )
