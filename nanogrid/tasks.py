"""The tasks: what producers call, and the policy around one run (claim, attempts, who is to blame).

The rule: every request ends with an ExecutionResult under its request id. A task never fails in Celery's sense: what is
wrong with a request, a function or NanoGrid itself is told by the result's outcome.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import redis
from celery import Task
from celery.canvas import maybe_signature
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from nanogrid.celery import app
from nanogrid.errors import (
    ClaimBusyError,
    CodeError,
    ContainerError,
    InvalidRequestError,
    LimitLoweredError,
    NanoGridError,
    PoolExhaustedError,
)
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

log = get_task_logger(__name__)

Prepare = Callable[[FunctionRequest], FunctionRequest]


class FunctionTask(Task):
    """A task whose one argument is a request: checked, routed and given its time limits before it is sent."""

    ignore_result = False
    max_retries = None  # our own limit counts, see `attempt`
    Strategy = "nanogrid.telemetry.logs:strategy"

    def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
        """Send the request. Raises InvalidRequestError, and ConfigurationError for eager tasks, before anything is sent."""
        if self.app.conf.task_always_eager:
            refuse_here(EAGER)
        tracing.begin(self.app.settings)
        request, rest = self.split(args, kwargs)
        again = bool(options.get("retries"))
        if not again:
            canvas.refuse_unusable(options, self.app.settings)
        queue = options.get("queue") if again else None  # an attempt goes back to where the first came from
        submission = Submission.of(request, self.app.settings, task_id=task_id, queue=queue)
        return super().apply_async((submission.wire, *rest), {}, **submission.options(options))

    def apply(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: it would run the function here. Raises ConfigurationError."""
        refuse_here(EAGER if self.app.conf.task_always_eager else f"{self.__name__}.apply")

    def split(self, args: Any, kwargs: Any) -> tuple[object, tuple[Any, ...]]:
        """The request, and what else the task takes."""
        return merge_fields(args, kwargs), ()

    def signature(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """A signature whose task id is the request's own id, so that a group or chord finds its results under it.

        Where request ids have a prefix Celery cannot make one: it is made here.
        """
        signature = super().signature(args, *more, **options)
        if self.name == EXECUTE and signature.kwargs and not signature.args:
            # A result that Celery puts first would be taken for the request.
            signature.args, signature.kwargs = (signature.kwargs,), {}
        request = signature.args[-1] if signature.args else signature.kwargs
        if isinstance(request, dict) and request.get("requestId"):
            signature.options.setdefault("task_id", request["requestId"])
        elif isinstance(request, dict) and self.app.settings.request_id_prefixes:
            signature.options.setdefault("task_id", new_request_id(request, self.app.settings))
        return signature

    def map(self, it: Any) -> NoReturn:
        """Refused: it would run requests one after the other, none with a result of its own. Raises InvalidRequestError."""
        refuse_in_one_task(f"{self.__name__}.map")

    def starmap(self, it: Any) -> NoReturn:
        """Refused as `map` is."""
        refuse_in_one_task(f"{self.__name__}.starmap")

    def chunks(self, it: Any, n: int) -> NoReturn:
        """Refused as `map` is."""
        refuse_in_one_task(f"{self.__name__}.chunks")


class ReduceTask(FunctionTask):
    """Runs a function over the results of a map. Those stay in Redis: only their ids travel."""

    def split(self, args: Any, kwargs: Any) -> tuple[object, tuple[Any, ...]]:
        """Celery's chord puts the list of results before the arguments; it is dropped here, before it meets SQS."""
        *_, request, parts, on_failure = args
        return request, (parts, on_failure)


# shared=False: a task belongs to this app alone, not to every other Celery app of a producer's process.
@app.task(base=FunctionTask, bind=True, name=EXECUTE, shared=False)
def execute_function(task: FunctionTask, *args: Any, **kwargs: Any) -> ExecutionResult:
    """Run one function once. Stored, and seen by whoever asks for it, is the ExecutionResult's JSON object."""
    if not task.request.id:
        refuse_without_id(task.name)
    return _go_on(task, answer(task, merge_fields(args, kwargs)))


@app.task(base=ReduceTask, bind=True, name=REDUCE, shared=False)
def reduce_function(task: ReduceTask, request: dict[str, Any], parts: list[str], on_failure: str) -> ExecutionResult:
    """Run a function whose payload is the list of the parts' values."""
    if not task.request.id:
        refuse_without_id(task.name)

    def with_payload(parsed: FunctionRequest) -> FunctionRequest:
        results = [load_result(task, part) or not_run(part, "", "its result is not stored any more") for part in parts]
        return parsed.with_payload([*reducer_input(results, on_failure)])

    return _go_on(task, answer(task, request, with_payload))


def answer(task: FunctionTask, data: object, prepare: Prepare = lambda request: request) -> ExecutionResult:
    """What is stored for a request: its result, or why there is none. Raises Celery's Retry where another attempt may help."""
    try:
        request = parse_named(data, task.app.settings, str(task.request.id), queue=_queue(task))
    except InvalidRequestError as invalid:
        return _not_run(task, str(task.request.id), _function_id(data), str(invalid), None)
    if too_old := _too_old(request, task):
        return _not_run(task, request.request_id, request.function_id, too_old, request.runtime)
    try:
        return _effectively_once(task, request, prepare)
    except redis.RedisError as error:
        count(counters.ATTEMPT_FAILED, "redis")
        return _again_or_give_up(task, request, f"Redis does not answer: {error}")


def _go_on(task: FunctionTask, result: ExecutionResult) -> ExecutionResult:
    """Send what is to come after a request. Whatever becomes of that, the request has its result, and what is not sent too.

    In the place of Celery, which does it when this has returned, and for which a callback that cannot be sent is a task that failed.
    """
    context = task.request
    chain = list(context.chain or ())
    if result.outcome in canvas.STOPPING:
        task.backend.answer_after(context, result)
    else:
        for callback in context.callbacks or ():
            _send_on(task, result, callback, [])
        if chain:
            _send_on(task, result, chain[-1], chain[:-1])
    context.callbacks = context.chain = None
    return result


def _send_on(task: FunctionTask, result: ExecutionResult, callback: dict[str, Any], rest: list[dict[str, Any]]) -> None:
    """Send one callback, or the next part of a chain with the `rest` of it (the last one first)."""
    options = {"chain": rest} if rest else {}
    context = task.request
    try:
        following = maybe_signature(callback, app=task.app)
        following.apply_async((result,), parent_id=context.id, root_id=context.root_id or context.id, **options)
    except Exception as error:  # noqa: BLE001  # it is the callback's, and whoever waits for it is told
        log.warning("request %s: what was to come after it is not sent: %s", result.request_id, error)
        reason = str(error) if isinstance(error, NanoGridError) else f"not run: it could not be sent: {error}"
        task.backend.answer_unsent([callback, *rest[::-1]], reason)


def _effectively_once(task: FunctionTask, request: FunctionRequest, prepare: Prepare) -> ExecutionResult:
    """Run under the claim of the task's id; a duplicate gets the stored result, or waits for the one who runs."""
    claims, token, key = _claims(task.app.settings), uuid.uuid4().hex, str(task.request.id)
    beside = key_of(request.function_id), READ_BY_RUNS
    while True:
        stored, taken, tuner = claims.read_and_take(key, token, task.backend.get_key_for_task(key), beside)
        if (final := final_result(stored)) is not None:
            if taken:
                claims.release(key, token)
            count(counters.DUPLICATE, counters.ANSWERED)
            return final
        if taken:
            break
        log.info("request %s is running elsewhere; waiting for it", key)
        count(counters.DUPLICATE, counters.WAITED)
        try:
            claims.wait(key, task.app.settings.longest_run_s)
        except (ClaimBusyError, SoftTimeLimitExceeded):
            # The run that is under way has the only say; this delivery goes back to its queue.
            raise Reject(f"request {key} is still running elsewhere", requeue=True) from None
    with claims.hold(key, token):
        outcome = _attempt(task, request, prepare, decision_for(request.function_id, tuner, task.app.settings))
    if isinstance(outcome, ExecutionResult):
        return outcome
    claims.release(key, token)
    return _again_or_give_up(task, request, outcome)


def _attempt(
    task: FunctionTask, request: FunctionRequest, prepare: Prepare, tuned: Decision
) -> ExecutionResult | NanoGridError | str:
    """One attempt: a result, or NanoGrid's own trouble, that another attempt may not meet."""
    settings: Settings = task.app.settings
    try:
        executor = _executor(settings, task.request.hostname)
        if task.request.get(NOT_LOWERED):
            tuned = replace(tuned, advice=None)
        return executor.execute(prepare(request), attempt=task.request.retries + 1, queue_ms=_age_ms(task), tuned=tuned)
    except NanoGridError as error:
        if error.retryable:
            count(counters.ATTEMPT_FAILED, _cause(error))
            return error
        return _not_run(task, request.request_id, request.function_id, str(error), request.runtime)
    except SoftTimeLimitExceeded:
        count(counters.ATTEMPT_FAILED, "time")
        return f"it took longer than timeoutMs and {settings.overhead_s:g} s of overhead"
    except Exception as error:  # a bug of ours must not lose the request
        log.exception("request %s: unexpected error", request.request_id)
        count(counters.ATTEMPT_FAILED, "unexpected")
        return f"unexpected {type(error).__name__}: {error}"


def _cause(error: NanoGridError) -> str:
    """Which of `counted.CAUSES` an error is."""
    kinds = (
        (CodeError, "code"),
        (PoolExhaustedError, "pool"),
        (ContainerError, "container"),
        (LimitLoweredError, "limit"),
    )
    return next((cause for kind, cause in kinds if isinstance(error, kind)), "unexpected")


def _again_or_give_up(task: FunctionTask, request: FunctionRequest, trouble: NanoGridError | str) -> ExecutionResult:
    """Raise Celery's Retry, or, after the last attempt, return a result that says how many there were."""
    settings: Settings = task.app.settings
    attempt = task.request.retries + 1
    if attempt < settings.max_attempts:
        wait_s = backoff_s(attempt, settings)
        stages.retrying(request.request_id, request.function_id, attempt, str(trouble), wait_s)
        count(counters.RETRY)
        headers = {SENT_AT: task.request.get(SENT_AT)}
        if isinstance(trouble, LimitLoweredError) or task.request.get(NOT_LOWERED):
            headers[NOT_LOWERED] = True
        raise task.retry(countdown=wait_s, headers=headers, throw=False)
    count(counters.GAVE_UP)
    reason = f"NanoGrid gave up after {attempt} attempts; the last one failed: {trouble}"
    return _not_run(task, request.request_id, request.function_id, reason, request.runtime)


def _not_run(
    task: FunctionTask, request_id: str, function_id: str, reason: str, runtime: str | None
) -> ExecutionResult:
    attempt = task.request.retries + 1
    return not_run(request_id, function_id, reason, runtime=runtime, worker=task.request.hostname, attempt=attempt)


def backoff_s(attempt: int, settings: Settings) -> float:
    """Wait after a failed attempt (1, 2, ...): full jitter below an exponential bound, never under a tenth of it.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    bound = min(settings.retry_backoff_max_s, settings.retry_backoff_s * 2.0 ** (attempt - 1))
    return random.uniform(bound / 10, bound)  # noqa: S311  # no secret


def load_result(task: Task, request_id: str) -> ExecutionResult | None:
    """The final result that is stored under an id, or None."""
    return final_result(task.backend.get(task.backend.get_key_for_task(request_id)))


def final_result(stored: str | bytes | None) -> ExecutionResult | None:
    """The result in what is stored for a request, or None where it has not come to its end."""
    meta = {"status": "PENDING"} if stored is None else json.loads(stored)
    if meta["status"] == "SUCCESS" and isinstance(meta["result"], dict):
        return ExecutionResult.from_wire(meta["result"])
    return None


def _too_old(request: FunctionRequest, task: FunctionTask) -> str | None:
    """Why the request is too old to be run, or None."""
    age_ms = _age_ms(task)
    if request.max_age_ms is None or age_ms is None or age_ms <= request.max_age_ms:
        return None
    return f"maxAgeMs: the request was {age_ms:.0f} ms old when its turn came, more than {request.max_age_ms}"


def _age_ms(task: FunctionTask) -> float | None:
    """Milliseconds since the request was first sent, by the clocks of producer (or SQS) and worker."""
    sent_at_ms = task.request.get(SENT_AT)
    return None if sent_at_ms is None else max(0.0, time.time() * 1000 - float(sent_at_ms))


def _queue(task: FunctionTask) -> str:
    """The queue that this delivery came from."""
    return str((task.request.delivery_info or {}).get("routing_key") or "")


def _function_id(data: object) -> str:
    value = data.get("functionId") if isinstance(data, dict) else None
    return value if isinstance(value, str) else ""


# Made on first use in each child: a client that crossed a fork would share its sockets with its siblings.
_per_process: dict[tuple[int, str], Any] = {}


def _claims(settings: Settings) -> Claims:
    key = (os.getpid(), "claims")
    if key not in _per_process:
        _per_process[key] = Claims(settings)
    claims: Claims = _per_process[key]
    return claims


def _executor(settings: Settings, worker: str) -> Executor:
    from nanogrid.execution.executor import Executor
    from nanogrid.execution.pool.child.lease import own_pool

    key = (os.getpid(), "executor")
    if key not in _per_process:
        _per_process[key] = Executor(settings, own_pool(settings), worker)
    executor: Executor = _per_process[key]
    return executor
