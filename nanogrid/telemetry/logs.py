"""The format of a worker's log: text for people or JSON, one line per stage of a request, and no secrets.

The rule: every line of any logger passes one formatter here, which masks passwords. Celery's own lines about our tasks are
dropped, because `nanogrid.telemetry.stages` logs the same and more. The rest works as in Celery (`--loglevel`, `--logfile`, colors).
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
"""Created once: `json.dumps` with options would create an encoder for each line."""

BODIES = {
    UNKNOWN_FORMAT: "a message of an unknown form is given back",
    UNKNOWN_TASK_ERROR: "a message for the unknown task %s is given back",
    INVALID_TASK_ERROR: "a message that is not a usable task is given back: %s",
}
"""Celery's lines that show the body of a message, which may hold a payload, and the lines that replace them."""


class Logging(celery_log.Logging):
    """`app.log`: Celery's logging setup with our formatters."""

    worker = ""
    """This worker's name, for each line of JSON."""

    def setup_logging_subsystem(self, *args: Any, hostname: str | None = None, **kwargs: Any) -> Any:
        """Called in the main process, and again in each child, which inherits the setup."""
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
        """Set up Celery's handlers with the formatter that the settings ask for."""
        return super().setup_handlers(logger, logfile, format, colorize, formatter=self.formatter(formatter), **kwargs)

    def formatter(self, like: Callable[..., logging.Formatter]) -> Callable[..., logging.Formatter]:
        """Return the factory of the formatter that replaces one of Celery's."""
        mask = Mask(secrets_of(self.app.settings))
        if self.app.settings.log_format == "json":
            return partial(JsonLines, mask, self.worker)
        return partial(TextLines, mask) if like is ColorFormatter else partial(TaskTextLines, mask)

    def only_json(self, worker: Any) -> None:
        """With the log format "json", print no banner and no warning as text."""
        if self.app.settings.log_format == "json":
            worker.quiet = True
            logging.captureWarnings(True)  # Celery warns about running as root before it sets logging up
            early = logging.StreamHandler(sys.__stderr__)
            early.setFormatter(JsonLines(Mask(secrets_of(self.app.settings)), worker.hostname))
            logging.getLogger("py.warnings").addHandler(early)
            logging.getLogger("py.warnings").propagate = False


class TextLines(ColorFormatter):
    """Celery's line, `worker_log_format`, without passwords. A line from within a request's run gets the request's id."""

    def __init__(self, mask: Mask, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask = mask
        self._second = (-1, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        """Format the time. Most lines fall into the same second as the line before."""
        if datefmt is not None or not self.default_msec_format:
            other: str = super().formatTime(record, datefmt)
            return other
        second = int(record.created)
        known, text = self._second
        if known != second:
            text = time.strftime(self.default_time_format, self.converter(second))
            self._second = second, text
        return f"{self.default_msec_format}" % (text, record.msecs)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Format the line without its traceback."""
        line = super().formatMessage(record)
        request = None if isinstance(record.msg, stages.Stage) else current_request()
        return line if request is None or request in line else f"{line} (request {request})"

    def format(self, record: logging.LogRecord) -> str:
        """Format the line."""
        if isinstance(record.msg, stages.Stage) and not (self.use_color and record.levelname in self.colors):
            # As logging does: the line of a stage has neither arguments nor a traceback.
            record.message = str(record.msg)
            if self.usesTime():
                record.asctime = self.formatTime(record, self.datefmt)
            return self._mask(self.formatMessage(record))
        return self._mask(super().format(record))


class TaskTextLines(celery_log.TaskFormatter):
    """Celery's line for a task's logger, `worker_task_log_format`, without passwords."""

    def __init__(self, mask: Mask, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        """Format the line."""
        return self._mask(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object per line, without passwords. Any record becomes exactly one line."""

    def __init__(self, mask: Mask, worker: str, *_: Any, **__: Any) -> None:
        super().__init__()
        self._mask = mask
        self._worker = worker
        self._second = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        """Format the object: the fields of a stage, or logger, process, message and exception."""
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
        """Return ISO 8601 in UTC, to the millisecond. Most lines fall into the same second as the line before."""
        second = int(created)
        known, text = self._second
        if known != second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second, text
        return f"{text}.{int((created - second) * 1000):03}Z"


def current_request() -> str | None:
    """Return the id of the request that this thread works on, or None."""
    task: Any = current_task  # a proxy, which is false without a task
    return task.request.id if task and task.request is not None else None


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Any:
    """Handle a message of one of our tasks as Celery does, and log that it was received. Runs in a worker's main process."""
    handle = default(task, app, consumer, info=_log_nothing, **kwargs)

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


def _log_nothing(*_: Any, **__: Any) -> None:
    """Replaces Celery's `Task … received`."""


def _function(message: Any) -> str:
    """Return the function that a message names, or "" if the message cannot be parsed: others report that."""
    try:
        args, kwargs = message.payload[0], message.payload[1]
        found = next((arg for arg in args if isinstance(arg, dict) and "functionId" in arg), kwargs).get("functionId")
    except Exception:  # noqa: BLE001  # the body may be anything, in any encoding
        return ""
    return found if isinstance(found, str) else ""


def _age_ms(sent_at_ms: Any) -> float | None:
    return max(0.0, time.time() * 1000 - sent_at_ms) if isinstance(sent_at_ms, (int, float)) else None


def _not_a_stage(record: logging.LogRecord) -> bool:
    """Drop Celery's lines about the ends of our tasks, which the stages report."""
    if record.msg in (LOG_SUCCESS, LOG_RETRY):
        return getattr(record, "data", {}).get("name") not in OURS
    return not (record.msg == DISCARDED and isinstance(record.args, tuple) and record.args[0] in OURS)


def _without_body(record: logging.LogRecord) -> bool:
    """Remove the body of a message from Celery's lines about unusable messages."""
    if isinstance(record.msg, str) and (words := BODIES.get(record.msg)):
        record.msg = words
        record.args = record.args[: words.count("%s")] if isinstance(record.args, tuple) else ()
        record.exc_info = None
    return True


FILTERS = {
    "celery.app.trace": _not_a_stage,
    "celery.worker.request": _not_a_stage,
    "celery.worker.consumer.consumer": _without_body,
}
"""Filters for Celery's own lines, by logger."""
