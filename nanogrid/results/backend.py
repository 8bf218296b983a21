"""Celery's Redis result backend, with three differences: every request ends with an ExecutionResult, the same step of Redis
appends it to the results stream, and nothing overwrites it.

If a child is killed (hard time limit, cancel), a request expires, or an unexpected error is raised, Celery would store an
exception: other languages could not read it, and a chord would stop at it. Here the outcome reports it instead.

An "end" is a stored ExecutionResult. It includes the time that storing took. After a short run, Redis fills that in by its own clock
and publishes the end in the step that stores it. Otherwise there are two steps: it is stored without the time, then completed with
it and published. Until then it is "unpublished".
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, NamedTuple

from billiard.exceptions import TimeLimitExceeded
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.states import FAILURE, STARTED, SUCCESS
from celery.utils.log import get_logger

from nanogrid.connections import forks, result_redis
from nanogrid.connections.result_redis import passes
from nanogrid.errors import NanoGridError, RedisUnavailableError
from nanogrid.monitoring.connections import settings_of
from nanogrid.result import ExecutionResult, Outcome, not_run
from nanogrid.results.listener import Listener
from nanogrid.results.map_parts import MapParts
from nanogrid.results.scripts import BEGIN, COMPLETE_END, GONE, REWRITE, SET_UNLESS_ENDED, STORE_FIRST_END
from nanogrid.results.stream.append import counter_key
from nanogrid.results.stream.entry import fields_of
from nanogrid.sqs import canvas
from nanogrid.telemetry import stages, tracing
from nanogrid.telemetry.counters import NOT_APPENDED
from nanogrid.telemetry.events import RequestEvent, count, emit

log = get_logger(__name__)

REASONS = {
    "terminated": (Outcome.CANCELLED, "cancelled while it ran"),
    "revoked": (Outcome.CANCELLED, "cancelled before it ran"),
    "expired": (Outcome.NOT_RUN, "the request expired before its turn came"),
}

CLOCK_S = 10.0
"""For this long the clocks of Redis and of this process are taken to run alike. A longer run's end is stored in two steps, which
cost nothing beside it."""

NULL = "null"
UNKNOWN_STORE_TIME = f'"store": {NULL}'
"""In the text of an unpublished end."""

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two attempts to reach a Redis that is down."""

_backends: weakref.WeakSet[ResultBackend] = weakref.WeakSet()
_left_behind: list[dict[str, Any]] = []
"""A forked process keeps its parent's attributes here: freeing them might wait for a lock whose thread does not exist here."""


DRIVER_INFO = ("driver_info", "lib_name", "lib_version")
_driver_info: dict[str, Any] = {}
"""Connection parameters by which Celery describes itself to Redis."""


class Begun(NamedTuple):
    """What is known when a request begins: its end if it has one, whether the claim is the caller's, fields of the hash."""

    ended: str | bytes | None
    claimed: bool
    fields: list[str | None]


class ResultBackend(RedisBackend):
    """Stores the results of our tasks, and those of other tasks of the app as Celery does. Producers read results through it.

    All mutable state: `_last_number`, the number of the last stored result, and `_clock`, a moment by two clocks. Celery creates a
    backend for each thread.
    """

    ResultConsumer = Listener
    _last_number = 0
    _clock: tuple[int, float] | None = None
    """Redis' clock in microseconds, and when this process learned it by its own clock in seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _backends.add(self)
        forks.renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Initialize again, in a forked process, without anything that belongs to the parent.

        In place, because each handle of a request refers to its backend.
        """
        before = dict(self.__dict__)
        _left_behind.append(before)
        self.__dict__.clear()
        self.__init__(app=before["app"], url=before["url"])  # type: ignore[misc]

    def _add_driver_info(self) -> None:
        """Called by Celery for each new backend: describe Celery and redis-py to Redis.

        The description is made once. Celery's own reads the metadata of redis-py's package from disk, and each child would do so.
        """
        if not _driver_info:
            super()._add_driver_info()
            _driver_info.update({name: self.connparams[name] for name in DRIVER_INFO if name in self.connparams})
        self.connparams.update(_driver_info)

    def soon(self, ask: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `ask` and retry for up to CONNECT_TIMEOUT_S, so that a restart of Redis causes no error.

        Raises RedisUnavailableError if Redis still does not answer.
        """
        deadline, pause_s = time.monotonic() + result_redis.CONNECT_TIMEOUT_S, SHORTEST_PAUSE_S
        while True:
            try:
                return ask(*args, **kwargs)
            except Exception as error:
                if not self.exception_safe_to_retry(error):
                    raise
                if time.monotonic() + pause_s >= deadline:
                    raise RedisUnavailableError(
                        f"Redis at {self.as_uri()} does not answer: {error}; "
                        "check that it runs and that NANOGRID_RESULT_URL is its address"
                    ) from error
                with contextlib.suppress(*self.connection_errors):
                    self.on_backend_retryable_error(error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def ensure(self, fun: Callable[..., Any], args: tuple[Any, ...], **policy: Any) -> Any:
        """Run Celery's own commands, on which Celery would give up after 20 s, with the advice to restart the application."""
        return self.soon(fun, *args)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to the result of a request before it is sent. If this raises RedisUnavailableError, nothing is sent."""
        try:
            super().on_task_call(producer, task_id)
        except RedisUnavailableError as down:
            raise RedisUnavailableError(f"{down}; nothing was sent") from down

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, request: Any = None, **kwargs: Any) -> None:
        """Called if a task raised, or its child was killed at the hard time limit."""
        if not _is_ours(request):
            super().mark_as_failure(task_id, exc, *args, request=request, **kwargs)
            return
        self._end_here(task_id, request, Outcome.NOT_RUN, _sentence(exc))

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, **kwargs: Any) -> None:
        """Called if a request was cancelled or has expired.

        Without a `request`, no worker holds it: it waits in its queue, or is not sent yet. The stored end is final, so that
        a worker that missed the cancellation does not run it either.
        """
        if request is not None and not _is_ours(request):
            super().mark_as_revoked(task_id, reason, request=request, **kwargs)
            return
        outcome, sentence = REASONS.get(reason, REASONS["revoked"])
        self._end_here(task_id, request, outcome, sentence)

    def chord_error_from_stack(self, callback: Any, exc: BaseException | None = None) -> Any:
        """Called if the body of a chord could not be sent."""
        if callback.task not in canvas.OURS:
            return super().chord_error_from_stack(callback, exc)
        cause = sys.exc_info()[1] or exc
        self.answer_unsent([callback], _sentence(cause) if cause else "not run: the parts before it failed")
        return None

    def answer_after(self, context: Any, result: ExecutionResult) -> None:
        """Store results for what follows a request that stops its chain."""
        self.answer_unsent(
            canvas.after(context), f"not run: the request before it, {result.request_id}, ended {result.outcome.value}"
        )

    def answer_unsent(self, signatures: list[dict[str, Any]], reason: str) -> None:
        """Store why parts of a canvas do not run: under each id that a caller may wait for, and for each chord that counts them."""
        for part in canvas.parts_of(signatures):
            context = _context_of(part)
            if not isinstance(context.id, str):
                continue
            if context.task in canvas.OURS:
                fields = canvas.request_in(part)
                function_id, runtime = (_text_or_none(fields.get(name)) for name in ("functionId", "runtime"))
                self.mark_as_done(
                    context.id, not_run(context.id, function_id or "", reason, runtime=runtime), request=context
                )
            else:
                super().mark_as_failure(context.id, NanoGridError(reason), request=context, call_errbacks=False)

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a result. A result of ours includes the time that storing took, so it is stored first and published with the time."""
        key = self.get_key_for_task(task_id)
        if state != SUCCESS or not isinstance(result, ExecutionResult):
            meta = self._meta(task_id, result, state, traceback, request)
            self._set_unless_ended(key, meta, self.failure_expires if state == FAILURE else self.expires)
            return result
        began = time.perf_counter()
        settings = settings_of(self.app)
        fields = fields_of(result, settings) if settings.stream_entries_limit else []
        meta = self._meta(task_id, result, SUCCESS, None, request)
        published = GONE
        while published == GONE:
            first = self._with_retries(self._store_first_end, key, meta, fields, self._by_redis_clock(began))
            if first is None:
                break
            if isinstance(first, float):
                stored, published = _with_store_ms(result, first), 1
                break
            stored, text = self._timed(first, (time.perf_counter() - began) * 1000)
            published = self._with_retries(self._complete_end, key, text)
            if published == GONE:
                log.warning(
                    "%s was gone from Redis right after it was stored, and is stored again: Redis has lost data", key
                )
        if published == 1:
            emit(_event(stored))
            stages.finished(stored)
            tracing.stored(stored)
        else:
            stages.answered(result)
        return result

    def _timed(self, unpublished: str | bytes, store_ms: float) -> tuple[ExecutionResult, str]:
        """Add the time that storing took to an end. Returns the result and the text to store."""
        meta = self.decode(unpublished)
        stored = _with_store_ms(ExecutionResult.from_wire(meta["result"]), store_ms)
        text: str = self.encode({**meta, "result": stored})
        return stored, text

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        """Count a part of a map, and send the reduction after the last one."""
        returned = self._parts.on_chord_part_return(request, state, result, **kwargs)
        if settings_of(self.app).result_replicas and request.group:
            key = self.get_key_for_task(request.id)
            self._with_retries(self._on_replicas, key, lambda client: self._rewrite_script(keys=[key], client=client))
        return returned

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether to retry: if Redis is down, as in Celery, or refuses writes for the moment."""
        return bool(super().exception_safe_to_retry(exc)) or passes(exc)

    def on_backend_retryable_error(self, exc: BaseException) -> None:
        """Called before a retry: a Redis that has become a replica refuses writes on old connections for ever."""
        self.client.connection_pool.disconnect(inuse_connections=False)

    def _with_retries(self, store: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Store something, and retry for as long as that can help: the message stays in its queue until then."""
        return super()._ensure_retryable(store, *args, **kwargs)

    def _ensure_retryable(
        self, func: Callable[..., Any], *args: Any, fallback_exc: Any = None, fallback_msg: Any = None, **kwargs: Any
    ) -> Any:
        """Called by Celery for commands that it retries for ever. Only storing a result is worth that; reads are limited."""
        if func == self._store_result:
            return self._with_retries(func, *args, fallback_exc=fallback_exc, fallback_msg=fallback_msg, **kwargs)
        kwargs.pop("max_retries", None)
        return self.soon(func, *args, **kwargs)

    def _store_first_end(self, key: str, meta: str, fields: list[str], began: int | None) -> float | str | bytes | None:
        """Store an end and append it to the stream, unless the request has an end: the first one wins. One round trip to Redis.

        `began` is when storing began, by Redis' clock. Returns the milliseconds of storing if this end is stored and published
        with them, the text of the stored end if it is not published yet, and None if another one is published.

        If the deployment requires replicas, this returns once enough of them have the stored end, whoever stored it.
        """
        settings = settings_of(self.app)
        stream = settings.stream_name
        keys = [key, stream, counter_key(stream)]
        waits = settings.result_replicas > 0
        head, tail = self._around_store_time(meta)
        since = "" if waits or began is None or not tail else began
        args = [
            *(head, tail, self.expires, self._ended, settings.stream_entries_limit),
            *(int(waits), self._unpublished, since, *fields),
        ]

        def store(client: Any) -> Any:
            return self._script(keys=keys, args=args, client=client)

        answers = self._on_replicas(key, store) if waits else [store(self.client)]
        for _, number, refused, *_ in answers:
            if number:
                self._check_number(number)
            if refused:
                count(NOT_APPENDED)
                log.warning(
                    "%s is stored, but could not be appended to the stream %s: %s", _text(key), stream, _text(refused)
                )
        first, _, _, *store_ms = answers[-1]
        if store_ms:
            return float(store_ms[0])
        if first == 1:
            return meta
        unpublished: str | bytes = first
        return unpublished or None

    def _around_store_time(self, meta: str) -> tuple[str, str]:
        """The text of an end before and after its time of storing; the whole text and nothing if it has one."""
        # The last one: a value of a function, which comes before, may look the same.
        at = meta.rfind(self._unpublished)
        if at < 0:
            return meta, ""
        at += len(UNKNOWN_STORE_TIME)
        return meta[: at - len(NULL)], meta[at:]

    def _by_redis_clock(self, at: float) -> int | None:
        """A moment by this process' clock, in microseconds of Redis' clock; None if that is not known well enough."""
        if self._clock is None or at - self._clock[1] > CLOCK_S:
            return None
        return self._clock[0] + round((at - self._clock[1]) * 1e6)

    def _on_replicas(self, key: str, write: Callable[[Any], Any]) -> list[Any]:
        """Write, and wait until enough replicas have it. Returns the first and the last answer to the write.

        Write and WAIT are sent together, because WAIT covers only writes of the same connection. If too few replicas have
        it, the write is sent again, so that WAIT covers it on a connection that was opened in the meantime, too.
        """
        settings = settings_of(self.app)
        answers: list[Any] = []
        since: float | None = None
        while True:
            with self.client.pipeline(transaction=False) as both:
                write(both)
                both.execute_command("WAIT", settings.result_replicas, settings.result_replicas_wait_ms)
                answer, have = both.execute()
            answers = [*answers[:1], answer]
            if have >= settings.result_replicas:
                if since is not None:
                    log.warning("%s: %d replicas have it after %.1f s", _text(key), have, time.monotonic() - since)
                return answers
            if since is None:
                since = time.monotonic()
                log.warning(
                    "%s: %d replicas have it and NANOGRID_RESULT_REPLICAS wants %d; its message is kept until they do",
                    _text(key), have, settings.result_replicas,
                )  # fmt: skip

    def _check_number(self, number: int) -> None:
        """Warn if a result's number is not larger than the number of an earlier result: Redis has lost results."""
        if number <= self._last_number:
            log.warning(
                "the number of the last result fell from %d to %d: Redis has lost results, or its stream was emptied",
                self._last_number, number,
            )  # fmt: skip
        self._last_number = number

    def begin(
        self, task_id: str, request: Any, claim: tuple[str, str, int], beside: tuple[str, Sequence[str]]
    ) -> Begun:
        """Take the claim of a request if it is free, and store that it has started, in one round trip to Redis.

        `claim` is the claim's key, the token and the claim's life in milliseconds; `beside` names fields of a hash to read.
        """
        key, fields = beside
        claim_key, token, life_ms = claim
        started = self._meta(task_id, {"pid": os.getpid(), "hostname": request.hostname}, STARTED, None, request)
        keys = [self.get_key_for_task(task_id), claim_key, key]
        args = [token, life_ms, started, self.expires, self._ended, *fields]
        ended, claimed, redis_us, *values = self._with_retries(self._begin_script, keys=keys, args=args)
        self._clock = int(redis_us), time.perf_counter()
        return Begun(ended, bool(claimed), [None if value is None else _text(value) for value in values])

    def _complete_end(self, key: str, meta: str) -> int:
        """Store how long storing took, and publish the result, if the end still exists and is unpublished."""
        args = [meta, self.expires, self._ended, self._unpublished]
        return int(self._complete_script(keys=[key], args=args))

    def _set_unless_ended(self, key: str, meta: str, expires_s: int) -> None:
        """Store and publish a state, unless the request has an end. One round trip to Redis."""
        self._state_script(keys=[key], args=[meta, expires_s, self._ended])

    def _set(self, key: str, value: str, expires: int | None = None) -> None:
        """Store and publish as Celery does, but with a command that redis-py has not deprecated."""
        with self.client.pipeline() as both:
            both.set(key, value, ex=(self.expires if expires is None else expires) or None)
            both.publish(key, value)
            both.execute()

    @cached_property
    def _parts(self) -> MapParts:
        return MapParts(app=self.app, url=self.url)

    @cached_property
    def _begin_script(self) -> Any:
        return self.client.register_script(BEGIN)

    @cached_property
    def _script(self) -> Any:
        return self.client.register_script(STORE_FIRST_END)

    @cached_property
    def _complete_script(self) -> Any:
        return self.client.register_script(COMPLETE_END)

    @cached_property
    def _rewrite_script(self) -> Any:
        return self.client.register_script(REWRITE)

    @cached_property
    def _state_script(self) -> Any:
        return self.client.register_script(SET_UNLESS_ENDED)

    @cached_property
    def _ended(self) -> str:
        # A quotation mark inside a JSON string is escaped, so no text of a function can look like the status.
        text: str = self.encode({"status": SUCCESS})[1:-1]
        return text

    @cached_property
    def _unpublished(self) -> str:
        # What marks an unpublished end: it has no time for the last phase, storing.
        return UNKNOWN_STORE_TIME + '}, "runtime"'

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, format_date: bool = True, encode: bool = False
    ) -> dict[str, Any]:
        """What Celery stores. Celery searches its configuration for `result_extended` each time, which takes longer than the rest."""
        if self._is_extended or not format_date:
            extended: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, format_date, encode)
            return extended
        ended = datetime.now(timezone.utc).astimezone(self.app.timezone) if state in self.READY_STATES else None
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": ended and ended.isoformat(),
        }
        for name, value in (("group_id", "group"), ("parent_id", "parent_id")):
            if found := getattr(request, value, None):
                meta[name] = found
        return meta

    @cached_property
    def _is_extended(self) -> bool:
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def _meta(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> str:
        """Return the text to store, as Celery formats it."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        text: str = self.encode({**meta, "task_id": task_id})
        return text

    def _end_here(self, task_id: str, request: Any, outcome: Outcome, reason: str) -> None:
        """Store the end of a request whose child could not return one, and results for what follows it."""
        result = self._end(task_id, request, outcome, reason)
        self.mark_as_done(task_id, result, request=request)
        if request is not None:
            self.answer_after(request, result)

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
    return getattr(request, "task", None) in canvas.OURS


def _field(request: Any, name: str) -> str | None:
    """Return a field of the request in Celery's context of its task, if it exists and is a string."""
    arguments = getattr(request, "args", None) or ()
    data = next((argument for argument in reversed(arguments) if isinstance(argument, dict)), {})
    return _text_or_none(data.get(name))


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _context_of(part: dict[str, Any]) -> Context:
    """Return the context that Celery would have for an unsent part of a canvas: its id, and its place in a group or chord."""
    options = part.get("options") or {}
    return Context(
        id=options.get("task_id"),
        task=part.get("task"),
        group=options.get("group_id"),
        group_index=options.get("group_index"),
        chord=options.get("chord"),
    )


def _with_store_ms(result: ExecutionResult, store_ms: float) -> ExecutionResult:
    phases = result.phases.model_copy(update={"store": round(store_ms, 3)})
    return result.model_copy(update={"phases": phases})


def _event(result: ExecutionResult) -> RequestEvent:
    return RequestEvent(
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


def _end() -> None:
    """Runs before the interpreter shuts down: objects that are freed later can neither connect nor import."""
    for backend in list(_backends):
        backend.result_consumer.end()


atexit.register(_end)
