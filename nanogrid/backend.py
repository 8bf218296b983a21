"""Celery's Redis result backend, with three differences: every request ends with an ExecutionResult, each of those is appended
to the results stream, in the same step, and nothing is ever stored over an end.

Where a child is killed (hard limit, cancel), a request expires, or something unforeseen is raised, Celery would store an
exception: other languages could not read it, and a chord would stop at it. Here the outcome tells instead.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from billiard.exceptions import TimeLimitExceeded
from celery.backends.redis import RedisBackend
from celery.states import FAILURE, SUCCESS
from celery.utils.log import get_logger

from nanogrid import stages, tracing
from nanogrid.counted import NOT_APPENDED
from nanogrid.errors import NanoGridError
from nanogrid.monitoring import settings_of
from nanogrid.observations import RequestEnded, happened, tell
from nanogrid.result import ExecutionResult, Outcome, not_run
from nanogrid.stream.append import APPEND, counter_key
from nanogrid.stream.entry import fields_of
from nanogrid.submission import EXECUTE, REDUCE

log = get_logger(__name__)

REASONS = {
    "terminated": (Outcome.CANCELLED, "cancelled while it ran"),
    "revoked": (Outcome.CANCELLED, "cancelled before it ran"),
    "expired": (Outcome.NOT_RUN, "the request expired before its turn came"),
}

SET_UNLESS_ENDED = """
local stored = redis.call('get', KEYS[1])
if stored and string.find(stored, ARGV[3], 1, true) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'ex', ARGV[2])
redis.call('publish', KEYS[1], ARGV[1])
return 1
"""
"""Celery looks first and sets afterwards: a duplicate's STARTED that comes between would erase an end, and the function run again."""

STORE_FIRST_END = (
    APPEND
    + """
local stored = redis.call('get', KEYS[1])
if stored and string.find(stored, ARGV[3], 1, true) then return {0, ''} end
redis.call('set', KEYS[1], ARGV[1], 'ex', ARGV[2])
if ARGV[4] == '0' then return {1, ''} end
return {1, append(KEYS[2], KEYS[3], ARGV[4], {unpack(ARGV, 5)})}
"""
)


class ResultBackend(RedisBackend):
    """Stores results of our tasks; those of other tasks of the app as Celery does."""

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, request: Any = None, **kwargs: Any) -> None:
        """Called where a task raised, or its child was killed at the hard time limit."""
        if not _is_ours(request):
            super().mark_as_failure(task_id, exc, *args, request=request, **kwargs)
            return
        self.mark_as_done(task_id, self._end(task_id, request, Outcome.NOT_RUN, _sentence(exc)), request=request)

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, **kwargs: Any) -> None:
        """Called where a request was cancelled or expired.

        Without a `request` no worker has it: it waits in its queue, or will come. Its stored end is final, so that it is
        not run either by a worker that never heard of the cancellation.
        """
        if request is not None and not _is_ours(request):
            super().mark_as_revoked(task_id, reason, request=request, **kwargs)
            return
        outcome, sentence = REASONS.get(reason, REASONS["revoked"])
        self.mark_as_done(task_id, self._end(task_id, request, outcome, sentence), request=request)

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a result. One of ours tells how long that took: it is written, and then published with the time."""
        key = self.get_key_for_task(task_id)
        if state != SUCCESS or not isinstance(result, ExecutionResult):
            meta = self._meta(task_id, result, state, traceback, request)
            self.ensure(self._set_unless_ended, (key, meta, self.failure_expires if state == FAILURE else self.expires))
            return result
        began = time.perf_counter()
        settings = settings_of(self.app)
        fields = fields_of(result, settings) if settings.stream_entries_limit else []
        if not self.ensure(self._store_first_end, (key, self._encoded(task_id, result, request), fields)):
            stages.answered(result)
            return result
        phases = result.phases.model_copy(update={"store": round((time.perf_counter() - began) * 1000, 3)})
        stored = result.model_copy(update={"phases": phases})
        self._set_with_state(key, self._encoded(task_id, stored, request), state)
        tell(_ended(stored))
        stages.finished(stored)
        tracing.stored(stored)
        return result

    def _store_first_end(self, key: str, meta: str, fields: list[str]) -> bool:
        """Store and append, unless a request has its end already: the first one stands. One round trip to Redis."""
        settings = settings_of(self.app)
        stream = settings.stream_name
        first, refused = self._script(
            keys=[key, stream, counter_key(stream)],
            args=[meta, self.expires, self._ended, settings.stream_entries_limit, *fields],
        )
        if refused:
            happened(NOT_APPENDED)
            log.warning("%s is stored, and could not be appended to the stream %s: %s", key, stream, _text(refused))
        return bool(first)

    def _set_unless_ended(self, key: str, meta: str, expires_s: int) -> None:
        """Store a state, and publish it, unless there is an end. One round trip to Redis."""
        self._state_script(keys=[key], args=[meta, expires_s, self._ended])

    def _set(self, key: str, value: str, expires: int | None = None) -> None:
        """As Celery does it, by a command that redis-py does not call deprecated."""
        with self.client.pipeline() as both:
            both.set(key, value, ex=(self.expires if expires is None else expires) or None)
            both.publish(key, value)
            both.execute()

    @cached_property
    def _script(self) -> Any:
        return self.client.register_script(STORE_FIRST_END)

    @cached_property
    def _state_script(self) -> Any:
        return self.client.register_script(SET_UNLESS_ENDED)

    @cached_property
    def _ended(self) -> str:
        # A quotation mark inside of a JSON string has a backslash before it: no text of a function's looks like the status.
        text: str = self.encode({"status": SUCCESS})[1:-1]
        return text

    def _encoded(self, task_id: str, result: ExecutionResult, request: Any) -> str:
        return self._meta(task_id, result, SUCCESS, None, request)

    def _meta(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> str:
        """What is stored, as Celery puts it together."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        text: str = self.encode({**meta, "task_id": task_id})
        return text

    def _end(self, task_id: str, request: Any, outcome: Outcome, reason: str) -> ExecutionResult:
        return not_run(
            task_id,
            _field(request, "functionId") or "",
            reason,
            runtime=_field(request, "runtime"),
            outcome=outcome,
            worker=getattr(request, "hostname", None),
            attempt=int(getattr(request, "retries", None) or 0) + 1,
        )


def _is_ours(request: Any) -> bool:
    return getattr(request, "task", None) in (EXECUTE, REDUCE)


def _field(request: Any, name: str) -> str | None:
    """A field of the request that Celery's context of its task carries, where it is there and a string."""
    data = next((argument for argument in getattr(request, "args", None) or () if isinstance(argument, dict)), {})
    value = data.get(name)
    return value if isinstance(value, str) else None


def _ended(result: ExecutionResult) -> RequestEnded:
    return RequestEnded(
        function_id=result.function_id,
        runtime=result.runtime,
        outcome=result.outcome.value,
        start_kind=None if result.start_kind is None else result.start_kind.value,
        phases=vars(result.phases),
        peak_bytes=result.peak_memory_bytes,
        limit_mb=result.memory_limit_mb,
        attempt=result.attempt,
    )


def _text(answer: str | bytes) -> str:
    return answer if isinstance(answer, str) else answer.decode(errors="replace")


def _sentence(exc: BaseException) -> str:
    if isinstance(exc, TimeLimitExceeded):
        return f"the worker child did not end within Celery's hard time limit of {exc.args[0]:g} s"
    return str(exc) if isinstance(exc, NanoGridError) else f"unexpected {type(exc).__name__}: {exc}"
