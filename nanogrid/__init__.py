"""NanoGrid runs functions from SQS and S3 in hardened Docker containers and stores results in Redis, on Celery.

    from nanogrid import execute_function
    execute_function.delay({"functionId": "thumb", "runtime": "python", "s3Bucket": "code", "s3Key": "thumb.zip"})

Send and wait:

    execute_function  the Celery task that runs one function once
    Client            submit, wait, cancel, upload code, map and reduce
    FunctionRequest   a checked request; a plain dictionary works as well
    ExecutionResult   the result of a request
    Outcome           how a request ended
    PartFailure       what a failed part does to a map
    follow            every result as it is stored
    StreamedResult    one of these, with its number

Configure:

    Settings          all settings, read from the environment or given as arguments
    configure         set the settings of this process
    Runtime           how functions of one language run, for the setting `runtimes`

Errors, all of them a NanoGridError:

    NanoGridError            the root of all errors
    ConfigurationError       a setting, queue or extra must be corrected
    InvalidRequestError      the request can never work
    ResultUnavailableError   there is no result: unknown, expired, or not finished in time
    RedisUnavailableError    the result Redis does not answer
    SubmissionError          some of many requests were not sent

A name is imported when it is first used, so that reading a result does not load what only a worker needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanogrid.client import Client, follow
    from nanogrid.errors import (
        ConfigurationError,
        InvalidRequestError,
        NanoGridError,
        RedisUnavailableError,
        ResultUnavailableError,
        SubmissionError,
    )
    from nanogrid.request import FunctionRequest
    from nanogrid.result import ExecutionResult, Outcome
    from nanogrid.results.mapping import PartFailure
    from nanogrid.results.stream.entry import StreamedResult
    from nanogrid.runtimes import Runtime
    from nanogrid.settings import Settings, configure
    from nanogrid.tasks import execute_function

__version__ = "0.1.0"

_HOMES = {
    "Client": "nanogrid.client",
    "ConfigurationError": "nanogrid.errors",
    "ExecutionResult": "nanogrid.result",
    "FunctionRequest": "nanogrid.request",
    "InvalidRequestError": "nanogrid.errors",
    "NanoGridError": "nanogrid.errors",
    "Outcome": "nanogrid.result",
    "PartFailure": "nanogrid.results.mapping",
    "RedisUnavailableError": "nanogrid.errors",
    "ResultUnavailableError": "nanogrid.errors",
    "Runtime": "nanogrid.runtimes",
    "Settings": "nanogrid.settings",
    "StreamedResult": "nanogrid.results.stream.entry",
    "SubmissionError": "nanogrid.errors",
    "configure": "nanogrid.settings",
    "execute_function": "nanogrid.tasks",
    "follow": "nanogrid.client",
}

__all__ = [
    "Client",
    "ConfigurationError",
    "ExecutionResult",
    "FunctionRequest",
    "InvalidRequestError",
    "NanoGridError",
    "Outcome",
    "PartFailure",
    "RedisUnavailableError",
    "ResultUnavailableError",
    "Runtime",
    "Settings",
    "StreamedResult",
    "SubmissionError",
    "configure",
    "execute_function",
    "follow",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
