"""Log lines as JSON objects, for handlers that choose them as in AWS Lambda, by `AWS_LAMBDA_LOG_FORMAT=JSON`.

`call_handler.py` executes this file instead of importing it, so that a function sees no such module.
"""

from __future__ import annotations

import json
import logging
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from typing import Any

OWN = ("aws_request_id", "tenant_id", "message", "asctime", "taskName")
RESERVED = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), *OWN} - {"message", "asctime", "taskName"}
"""The attributes of every record. All others are the program's own (`extra=`), and are shown."""


class JsonFormatter(logging.Formatter):
    """Formats each record as one object in one line."""

    def __init__(self) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%SZ")
        self._encode = json.JSONEncoder(ensure_ascii=False, default=str).encode

    def format(self, record: Any) -> str:
        """Return the record's line, including the line end. Levels between the usual ones count as the one below."""
        record.levelno = min(50, max(0, record.levelno)) // 10 * 10
        record.levelname = logging.getLevelName(record.levelno)
        kind, error, trace = record.exc_info or (None, None, None)
        as_it_is = isinstance(record.msg, dict) and not record.args
        shown = {
            "timestamp": self.formatTime(record, self.datefmt),
            "level": record.levelname,
            "message": record.msg if as_it_is else record.getMessage(),
            "logger": record.name,
            "stackTrace": traceback.format_tb(trace) if record.exc_info else None,
            "errorType": kind.__name__ if kind else None,
            "errorMessage": str(error) if record.exc_info else None,
            "requestId": getattr(record, "aws_request_id", None),
            "location": f"{record.pathname}:{record.funcName}:{record.lineno}" if record.exc_info else None,
        }
        extra = {name: value for name, value in vars(record).items() if name not in RESERVED and name not in shown}
        return self._encode({name: value for name, value in {**shown, **extra}.items() if value is not None}) + "\n"
