"""What a worker's log looks like: text for people or JSON, one line per stage of a request, and no secrets.

The rule: whatever any logger says leaves through one formatter here, which masks passwords. Celery's own lines about our
tasks go: `nanogrid.telemetry.stages` says the same and more. The rest is as Celery does it (`--loglevel`, `--logfile`, colours).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import current_task
from celery.app import log as celery_log
from celery.app.trace import LOG_RETRY, LOG_SUCCESS
from celery.utils.log import ColorFormatter
from celery.worker.consumer.consumer import INVALID_TASK_ERROR, UNKNOWN_FORMAT, UNKNOWN_TASK_ERROR
from celery.worker.strategy import default

from nanogrid.telemetry import stages
from nanogrid.telemetry.masking import Mask, secrets_of
from nanogrid.wire.names import EXECUTE, RECEIVES_HEADER, REDUCE, SENT_AT

OURS = (EXECUTE, REDUCE)
DISCARDED = "Discarding revoked task: %s[%s]"

encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
"""Made once: `json.dumps` with options makes one for each line."""

BODIES = {
    UNKNOWN_FORMAT: "a message of an unknown form is given back",
    UNKNOWN_TASK_ERROR: "a message for the unknown task %s is given back",
    INVALID_TASK_ERROR: "a message that is no usable task is given back: %s",
}
"""Celery's lines that show the body of a message, which may be a payload; and what is said in their place."""


class Logging(celery_log.Logging):
    """`app.log`: Celery's set-up with our formatters."""

    worker = ""
    """This worker's name, in each line of JSON."""

    def setup_logging_subsystem(self, *args: Any, hostname: str | None = None, **kwargs: Any) -> Any:
        """Called in the main process, and in each child, which has it all from the main process."""
        self.worker = hostname or ""
        for name, of_interest in FILTERS.items():
            logging.getLogger(name).addFilter(of_interest)
        return super().setup_logging_subsystem(*args, hostname=hostname, **kwargs)

    def setup_handlers(
        self,
        logger: logging.Logger,
        logfile: Any,
        format: str,  # noqa: A002  # Celery's name for it
        colorize: bool,
        formatter: Callable[..., logging.Formatter] = ColorFormatter,
        **kwargs: Any,
    ) -> Any:
        """Celery's handlers, with the formatter that the settings ask for in place of Celery's own."""
        return super().setup_handlers(logger, logfile, format, colorize, formatter=self.formatter(formatter), **kwargs)

    def formatter(self, like: Callable[..., logging.Formatter]) -> Callable[..., logging.Formatter]:
        """What makes the formatter that stands in for one of Celery's."""
        mask = Mask(secrets_of(self.app.settings))
        if self.app.settings.log_format == "json":
            return partial(JsonLines, mask, self.worker)
        return partial(TextLines, mask) if like is ColorFormatter else partial(TaskTextLines, mask)

    def only_json(self, worker: Any) -> None:
        """Have nothing else on a worker's output where it is to be JSON: no banner, and no warning as text."""
        if self.app.settings.log_format == "json":
            worker.quiet = True
            logging.captureWarnings(True)  # Celery warns of root before it has set logging up
            early = logging.StreamHandler(sys.__stderr__)
            early.setFormatter(JsonLines(Mask(secrets_of(self.app.settings)), worker.hostname))
            logging.getLogger("py.warnings").addHandler(early)
            logging.getLogger("py.warnings").propagate = False


class TextLines(ColorFormatter):
    """Celery's line, `worker_log_format`, without passwords; of a request's run, with the request's id."""

    def __init__(self, mask: Mask, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask = mask

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line without a traceback."""
        line = super().formatMessage(record)
        request = None if isinstance(record.msg, stages.Stage) else current_request()
        return line if request is None or request in line else f"{line} (request {request})"

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return self._mask(super().format(record))


class TaskTextLines(celery_log.TaskFormatter):
    """Celery's line of a task's own logger, `worker_task_log_format`, without passwords."""

    def __init__(self, mask: Mask, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return self._mask(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object per line, without passwords. Whatever a record holds, it is one line."""

    def __init__(self, mask: Mask, worker: str, *_: Any, **__: Any) -> None:
        super().__init__()
        self._mask = mask
        self._worker = worker
        self._second = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        """The object: a stage's fields, or logger, process, message and what was raised."""
        stage = record.msg
        line: dict[str, Any] = {"time": self._time(record.created), "level": record.levelname}
        if isinstance(stage, stages.Stage):
            line["stage"] = stage.name
            line["request"] = stage.request
            line["function"] = stage.function
            line["worker"] = self._worker
            line["attempt"] = stage.attempt
            line.update(stage.fields)
        else:
            line["logger"] = record.name
            line["request"] = current_request()
            line["worker"] = self._worker
            line["process"] = record.processName
            line["message"] = record.getMessage()
            if record.exc_info:
                line["exception"] = self.formatException(record.exc_info)
            if record.stack_info:
                line["stack"] = self.formatStack(record.stack_info)
        return self._mask(encode(line))

    def _time(self, created: float) -> str:
        """ISO 8601 in UTC, to the millisecond. Most lines are of the second that the line before was of."""
        second = int(created)
        known, text = self._second
        if known != second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second, text
        return f"{text}.{int((created - second) * 1000):03}Z"


def current_request() -> str | None:
    """The id of the request that this thread is at work for, or None."""
    task: Any = current_task  # a proxy, which is false without a task
    return task.request.id if task and task.request is not None else None


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Any:
    """How a worker's main process takes a message of one of our tasks: as Celery does, and says that it was received."""
    handle = default(task, app, consumer, info=_say_nothing, **kwargs)

    def take(message: Any, body: Any, *args: Any, **more: Any) -> Any:
        headers = message.headers
        stages.received(
            str(headers["id"]),
            _function(message),
            retries + 1 if isinstance(retries := headers.get("retries"), int) else 1,
            queue=message.delivery_info["routing_key"],
            deliveries=headers.get(RECEIVES_HEADER),
            age_ms=_age_ms(headers.get(SENT_AT)),
        )
        return handle(message, body, *args, **more)

    return take


def _say_nothing(*_: Any, **__: Any) -> None:
    """In place of Celery's `Task … received`."""


def _function(message: Any) -> str:
    """The function that a message names, or "" where it cannot be read: what is wrong with it is told by others."""
    try:
        args, kwargs = message.payload[0], message.payload[1]
        found = next((arg for arg in args if isinstance(arg, dict) and "functionId" in arg), kwargs).get("functionId")
    except Exception:  # noqa: BLE001  # it may be anything, in any encoding
        return ""
    return found if isinstance(found, str) else ""


def _age_ms(sent_at_ms: Any) -> float | None:
    return max(0.0, time.time() * 1000 - sent_at_ms) if isinstance(sent_at_ms, (int, float)) else None


def _not_told_by_stages(record: logging.LogRecord) -> bool:
    """Drop Celery's lines about the ends of our tasks."""
    if record.msg in (LOG_SUCCESS, LOG_RETRY):
        return getattr(record, "data", {}).get("name") not in OURS
    return not (record.msg == DISCARDED and isinstance(record.args, tuple) and record.args[0] in OURS)


def _without_body(record: logging.LogRecord) -> bool:
    """Cut the body of a message out of Celery's lines about messages that it cannot use."""
    if isinstance(record.msg, str) and (words := BODIES.get(record.msg)):
        record.msg = words
        record.args = record.args[: words.count("%s")] if isinstance(record.args, tuple) else ()
        record.exc_info = None
    return True


FILTERS = {
    "celery.app.trace": _not_told_by_stages,
    "celery.worker.request": _not_told_by_stages,
    "celery.worker.consumer.consumer": _without_body,
}
"""What becomes of Celery's own lines, by logger."""
