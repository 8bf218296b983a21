"""The tasks: what producers call, and what happens to one delivery of a request (claim, attempts, retries).

The rule: every request ends with an ExecutionResult under its request id. A task never fails in Celery's sense: the outcome
of the result reports what is wrong with a request, a function or NanoGrid itself.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import redis
from celery import Task
from celery.canvas import maybe_signature
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from nanogrid.celery import NanoGrid, app
from nanogrid.errors import ClaimBusyError, InvalidRequestError, LimitLoweredError, NanoGridError, PoolExhaustedError
from nanogrid.request import FunctionRequest, new_request_id
from nanogrid.result import ExecutionResult, not_run
from nanogrid.results.claims import Claims
from nanogrid.results.mapping import reducer_input
from nanogrid.settings import Settings
from nanogrid.sqs import canvas
from nanogrid.sqs.submission import (
    EAGER,
    Submission,
    merge_fields,
    parse_named,
    refuse_here,
    refuse_in_one_task,
    refuse_without_id,
)
from nanogrid.telemetry import counters, stages, tracing
from nanogrid.telemetry.events import count
from nanogrid.tuner.decision import Decision
from nanogrid.tuner.store import READ_BY_RUNS, decision_for, key_of
from nanogrid.wire.names import EXECUTE, NOT_LOWERED, REDUCE, SENT_AT

if TYPE_CHECKING:
    from nanogrid.execution.executor import Executor
    from nanogrid.results.backend import Begun

log = get_task_logger(__name__)

Prepare = Callable[[FunctionRequest], FunctionRequest]


class FunctionTask(Task):
    """A task whose only argument is a request. Sending it checks the request, picks the queue and sets the time limits."""

    ignore_result = False
    track_started = False  # stored in one step with the claim
    max_retries = None  # the setting `max_attempts` is the limit
    Strategy = "nanogrid.telemetry.logs:strategy"

    def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
        """Send the request. Raises InvalidRequestError, or ConfigurationError for eager tasks, before anything is sent."""
        if self.app.conf.task_always_eager:
            refuse_here(EAGER)
        tracing.begin(self.app.settings)
        request, rest = self.split(args, kwargs)
        again = bool(options.get("retries"))
        if not again:
            canvas.refuse_unusable(options, self.app.settings)
        queue = options.get("queue") if again else None  # a retry returns to the queue of the first attempt
        submission = Submission.of(request, self.app.settings, task_id=task_id, queue=queue)
        return super().apply_async((submission.wire, *rest), {}, **submission.options(options))

    def apply(self, *_: Any, **__: Any) -> NoReturn:
        """Always raises ConfigurationError: it would run the function in this process."""
        refuse_here(EAGER if self.app.conf.task_always_eager else f"{self.__name__}.apply")

    def split(self, args: Any, kwargs: Any) -> tuple[object, tuple[Any, ...]]:
        """Return the request and the other arguments of the task."""
        return merge_fields(args, kwargs), ()

    def signature(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Return a signature whose task id is the request id, so that a group or chord finds its results under that id.

        If request ids must have a prefix, the id is created here, because Celery's own ids have none.
        """
        signature = super().signature(args, *more, **options)
        if self.name == EXECUTE and signature.kwargs and not signature.args:
            # Celery may put an earlier result in front of the arguments. It must not be mistaken for the request.
            signature.args, signature.kwargs = (signature.kwargs,), {}
        request = signature.args[-1] if signature.args else signature.kwargs
        if isinstance(request, dict) and request.get("requestId"):
            signature.options.setdefault("task_id", request["requestId"])
        elif isinstance(request, dict) and self.app.settings.request_id_prefixes:
            signature.options.setdefault("task_id", new_request_id(request, self.app.settings))
        return signature

    def map(self, it: Any) -> NoReturn:
        """Always raises InvalidRequestError: it would run all requests in one task, and none would have its own result."""
        refuse_in_one_task(f"{self.__name__}.map")

    def starmap(self, it: Any) -> NoReturn:
        """Always raises InvalidRequestError, as `map` does."""
        refuse_in_one_task(f"{self.__name__}.starmap")

    def chunks(self, it: Any, n: int) -> NoReturn:
        """Always raises InvalidRequestError, as `map` does."""
        refuse_in_one_task(f"{self.__name__}.chunks")


class ReduceTask(FunctionTask):
    """Runs a function over the results of a map. The results stay in Redis; the message holds only their ids."""

    def split(self, args: Any, kwargs: Any) -> tuple[object, tuple[Any, ...]]:
        """Drop the list of results that Celery's chord puts before the arguments, so that it is not sent to SQS."""
        *_, request, parts, on_failure = args
        return request, (parts, on_failure)


# shared=False: the task belongs to this app alone, not to every other Celery app of a producer's process.
@app.task(base=FunctionTask, bind=True, name=EXECUTE, shared=False)
def execute_function(task: FunctionTask, *args: Any, **kwargs: Any) -> ExecutionResult:
    """Run one function once. Callers and the result backend see the ExecutionResult as a JSON object."""
    return Delivery(task).run(merge_fields(args, kwargs))


@app.task(base=ReduceTask, bind=True, name=REDUCE, shared=False)
def reduce_function(task: ReduceTask, request: dict[str, Any], parts: list[str], on_failure: str) -> ExecutionResult:
    """Run a function whose payload is the list of the results of a map."""

    def with_payload(parsed: FunctionRequest) -> FunctionRequest:
        results = [load_result(task, part) or not_run(part, "", "its result is no longer stored") for part in parts]
        return parsed.with_payload([*reducer_input(results, on_failure)])

    return Delivery(task).run(request, with_payload)


class Delivery:
    """One delivery of a request to this child, from the message's arguments to the result that Celery stores.

    `run` claims the request id, makes one attempt, and sends what follows the request. Celery's exceptions end a delivery
    without a result: Retry sends the request again with a delay, Reject returns the message to its queue.
    """

    def __init__(self, task: FunctionTask) -> None:
        if not task.request.id:
            refuse_without_id(task.name)
        self._task = task
        self._message = task.request
        self._settings: Settings = task.app.settings
        self._id = str(self._message.id)
        self._attempt: int = self._message.retries + 1
        self._token = uuid.uuid4().hex

    def run(self, data: object, prepare: Prepare = lambda request: request) -> ExecutionResult:
        """Run the request and send what follows it. `prepare` completes the parsed request within the attempt."""
        result = self._result(data, prepare)
        self._send_following(result)
        return result

    # -- the result

    def _result(self, data: object, prepare: Prepare) -> ExecutionResult:
        """Return the result to store: that of the run, or the reason why there is none."""
        try:
            request = parse_named(data, self._settings, self._id, queue=self._queue())
        except InvalidRequestError as invalid:
            return self._not_run(self._id, _function_id(data), str(invalid), None)
        if too_old := self._too_old(request):
            return self._refuse(request, too_old)
        try:
            return self._run_once(request, prepare)
        except redis.RedisError as error:
            count(counters.ATTEMPT_FAILED, "redis")
            return self._retry_or_give_up(request, f"Redis does not answer: {error}")

    def _run_once(self, request: FunctionRequest, prepare: Prepare) -> ExecutionResult:
        """Run under the claim of the request id. A duplicate returns the stored result, or waits for the run under way."""
        while True:
            begun = self._begin(request)
            if (final := final_result(begun.ended)) is not None:
                return self._answer_duplicate(final, claimed=begun.claimed)
            if begun.claimed:
                decision = decision_for(request.function_id, begun.fields, self._settings)
                return self._run_claimed(request, prepare, decision)
            self._wait_for_other_run()

    def _begin(self, request: FunctionRequest) -> Begun:
        """Read the stored result and the tuner's advice, take the claim if it is free, and store that the request has started."""
        claim = self._claims.claim(self._id, self._token)
        beside = key_of(request.function_id), READ_BY_RUNS
        begun: Begun = self._task.backend.begin(self._id, self._message, claim, beside)
        return begun

    def _answer_duplicate(self, final: ExecutionResult, *, claimed: bool) -> ExecutionResult:
        if claimed:
            self._claims.release(self._id, self._token)
        count(counters.DUPLICATE, counters.ANSWERED)
        return final

    def _wait_for_other_run(self) -> None:
        """Wait until the other run releases its claim. Raises Reject if that takes too long: only that run may store a result."""
        log.info("request %s is running elsewhere; waiting for it", self._id)
        count(counters.DUPLICATE, counters.WAITED)
        try:
            self._claims.wait(self._id, self._settings.longest_run_s)
        except (ClaimBusyError, SoftTimeLimitExceeded):
            raise Reject(f"request {self._id} is still running elsewhere", requeue=True) from None

    def _run_claimed(self, request: FunctionRequest, prepare: Prepare, decision: Decision) -> ExecutionResult:
        with self._claims.hold(self._id, self._token):
            outcome = self._make_attempt(request, prepare, decision)
        if isinstance(outcome, ExecutionResult):
            return outcome
        self._claims.release(self._id, self._token)
        return self._retry_or_give_up(request, outcome)

    def _make_attempt(
        self, request: FunctionRequest, prepare: Prepare, decision: Decision
    ) -> ExecutionResult | NanoGridError | str:
        """Run the function once. Returns the result, or the NanoGrid failure that another attempt may avoid."""
        try:
            executor = _parts_of(self._task).executor
            if self._message.get(NOT_LOWERED):
                decision = replace(decision, advice=None)
            return executor.execute(prepare(request), attempt=self._attempt, queue_ms=self._age_ms(), decision=decision)
        except NanoGridError as error:
            if not error.retryable:
                return self._refuse(request, str(error))
            count(counters.ATTEMPT_FAILED, error.cause)
            return error
        except SoftTimeLimitExceeded:
            count(counters.ATTEMPT_FAILED, "time")
            return f"the attempt took longer than timeoutMs and {self._settings.overhead_s:g} s of overhead"
        except Exception as error:  # a bug in NanoGrid must not lose the request
            log.exception("request %s: unexpected error", request.request_id)
            count(counters.ATTEMPT_FAILED, "unexpected")
            return f"unexpected {type(error).__name__}: {error}"

    def _retry_or_give_up(self, request: FunctionRequest, trouble: NanoGridError | str) -> ExecutionResult:
        """Raise Celery's Retry. After the last attempt, return a result that reports the number of attempts instead."""
        if self._attempt >= self._settings.max_attempts:
            count(counters.GAVE_UP)
            return self._refuse(
                request, f"NanoGrid gave up after {self._attempt} attempts; the last one failed: {trouble}"
            )
        wait_s = backoff_s(self._attempt, self._settings)
        stages.retrying(request.request_id, request.function_id, self._attempt, str(trouble), wait_s)
        count(counters.RETRY)
        raise self._task.retry(countdown=wait_s, headers=self._retry_headers(trouble), throw=False)

    def _retry_headers(self, trouble: NanoGridError | str) -> dict[str, Any]:
        headers = {SENT_AT: self._message.get(SENT_AT)}
        if isinstance(trouble, LimitLoweredError) or self._message.get(NOT_LOWERED):
            headers[NOT_LOWERED] = True
        return headers

    def _refuse(self, request: FunctionRequest, reason: str) -> ExecutionResult:
        return self._not_run(request.request_id, request.function_id, reason, request.runtime)

    def _not_run(self, request_id: str, function_id: str, reason: str, runtime: str | None) -> ExecutionResult:
        worker = self._message.hostname
        return not_run(request_id, function_id, reason, runtime=runtime, worker=worker, attempt=self._attempt)

    # -- what the message says

    def _queue(self) -> str:
        """Return the queue that this delivery came from."""
        return str((self._message.delivery_info or {}).get("routing_key") or "")

    def _age_ms(self) -> float | None:
        """Return the milliseconds since the request was first sent, by the clocks of producer (or SQS) and worker."""
        sent_at_ms = self._message.get(SENT_AT)
        return None if sent_at_ms is None else max(0.0, time.time() * 1000 - float(sent_at_ms))

    def _too_old(self, request: FunctionRequest) -> str | None:
        """Return why the request is too old to run, or None."""
        age_ms = self._age_ms()
        if request.max_age_ms is None or age_ms is None or age_ms <= request.max_age_ms:
            return None
        return f"maxAgeMs: the request was {age_ms:.0f} ms old when its turn came, more than {request.max_age_ms}"

    @property
    def _claims(self) -> Claims:
        return _parts_of(self._task).claims

    # -- what follows the request

    def _send_following(self, result: ExecutionResult) -> None:
        """Send the callbacks and the next part of the chain. If one cannot be sent, it gets a result, and so does this request.

        Celery would send them after the task has returned, and would mark the task as failed if a callback cannot be sent.
        """
        chain = list(self._message.chain or ())
        if result.outcome in canvas.STOPPING:
            self._task.backend.answer_after(self._message, result)
        else:
            for callback in self._message.callbacks or ():
                self._send(result, callback, [])
            if chain:
                self._send(result, chain[-1], chain[:-1])
        self._message.callbacks = self._message.chain = None

    def _send(self, result: ExecutionResult, callback: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        """Send one callback, or the next part of a chain with the `rest` of it (last part first)."""
        options = {"chain": rest} if rest else {}
        parent, root = self._message.id, self._message.root_id or self._message.id
        try:
            following = maybe_signature(callback, app=self._task.app)
            following.apply_async((result,), parent_id=parent, root_id=root, **options)
        except Exception as error:  # noqa: BLE001  # the callback's failure is stored as the callback's result
            log.warning("request %s: the task that follows it could not be sent: %s", result.request_id, error)
            reason = str(error) if isinstance(error, NanoGridError) else f"not run: it could not be sent: {error}"
            self._task.backend.answer_unsent([callback, *rest[::-1]], reason)


def backoff_s(attempt: int, settings: Settings) -> float:
    """Wait after a failed attempt (1, 2, ...): full jitter below an exponential bound, never under a tenth of it.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    bound = min(settings.retry_backoff_max_s, settings.retry_backoff_s * 2.0 ** (attempt - 1))
    return random.uniform(bound / 10, bound)  # noqa: S311  # no secret


def load_result(task: Task, request_id: str) -> ExecutionResult | None:
    """Return the final result stored under a request id, or None."""
    return final_result(task.backend.get(task.backend.get_key_for_task(request_id)))


def final_result(stored: str | bytes | None) -> ExecutionResult | None:
    """Parse what is stored for a request. Returns None if the request has not ended yet."""
    meta = {"status": "PENDING"} if stored is None else json.loads(stored)
    if meta["status"] == "SUCCESS" and isinstance(meta["result"], dict):
        return ExecutionResult.from_wire(meta["result"])
    return None


def _function_id(data: object) -> str:
    value = data.get("functionId") if isinstance(data, dict) else None
    return value if isinstance(value, str) else ""


class _ProcessParts:
    """What all deliveries of one process share, each part created at first use.

    A client that crossed a fork would share its sockets with the siblings, so each child creates its own.
    """

    def __init__(self, app: NanoGrid, worker: str) -> None:
        self._app = app
        self._worker = worker

    @cached_property
    def claims(self) -> Claims:
        return Claims(self._app.settings)

    @cached_property
    def executor(self) -> Executor:
        """The executor over the containers of this worker. Raises PoolExhaustedError outside of a worker."""
        from nanogrid.execution.executor import Executor
        from nanogrid.execution.pool.child.lease import Pool

        address = self._app.owner_address
        if address is None:
            raise PoolExhaustedError("this process has no container owner: functions run only in a NanoGrid worker")
        return Executor(self._app.settings, Pool(address, self._app.settings), self._worker)


_parts: dict[int, _ProcessParts] = {}
"""By process id."""


def _parts_of(task: FunctionTask) -> _ProcessParts:
    pid = os.getpid()
    if pid not in _parts:
        _parts[pid] = _ProcessParts(task.app, task.request.hostname)
    return _parts[pid]
