"""NanoGrid: functions from SQS and S3, run in hardened Docker containers, results in Redis, on Celery.

    from nanogrid import execute_function
    execute_function.delay({"functionId": "thumb", "runtime": "python", "s3Bucket": "code", "s3Key": "thumb.zip"})

Names are imported when they are used, so that reading a result does not load what only a worker needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanogrid.client import Client
    from nanogrid.errors import InvalidRequestError, NanoGridError
    from nanogrid.request import FunctionRequest
    from nanogrid.result import ExecutionResult, Outcome
    from nanogrid.results.mapping import PartFailure
    from nanogrid.settings import Settings, configure
    from nanogrid.tasks import execute_function

__version__ = "0.1.0"

_HOMES = {
    "Client": "nanogrid.client",
    "ExecutionResult": "nanogrid.result",
    "FunctionRequest": "nanogrid.request",
    "InvalidRequestError": "nanogrid.errors",
    "NanoGridError": "nanogrid.errors",
    "Outcome": "nanogrid.result",
    "PartFailure": "nanogrid.results.mapping",
    "Settings": "nanogrid.settings",
    "configure": "nanogrid.settings",
    "execute_function": "nanogrid.tasks",
}

__all__ = [
    "Client",
    "ExecutionResult",
    "FunctionRequest",
    "InvalidRequestError",
    "NanoGridError",
    "Outcome",
    "PartFailure",
    "Settings",
    "configure",
    "execute_function",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
