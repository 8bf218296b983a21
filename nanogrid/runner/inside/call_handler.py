"""Runs inside the container, as `python /nanogrid/runner/call_handler.py module.function`: calls a handler with the payload.

The handler gets the payload and a context with the names that AWS Lambda uses; what it returns, as JSON, is the result's
`value`. The rule: an error of the handler looks as it would without this file. Imports nothing of NanoGrid and works from
Python 3.9 on.
"""

from __future__ import annotations

import os
import sys

sys.path[0] = os.getcwd()  # noqa: PTH109  # before any import: the function's own modules come first

import json  # noqa: E402
import time  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from typing import Any

REGION = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


class Context:
    """What a handler may know of its run."""

    function_version = "$LATEST"
    identity = None
    client_context = None

    def __init__(self, started: float, deadline: float) -> None:
        """`started` and `deadline` are seconds of CLOCK_MONOTONIC."""
        self.aws_request_id = self.request_id = os.environ["NANOGRID_REQUEST_ID"]
        self.function_name = os.environ["NANOGRID_FUNCTION_ID"]
        self.memory_limit_in_mb = os.environ["NANOGRID_MEMORY_MB"]
        self.invoked_function_arn = f"arn:aws:lambda:{REGION}:000000000000:function:{self.function_name}"
        self.log_group_name = f"/aws/lambda/{self.function_name}"
        self.log_stream_name = time.strftime("%Y/%m/%d/[$LATEST]", time.gmtime()) + self.aws_request_id
        self.deadline = time.time() + deadline - started
        """When the run is ended from outside, in seconds since 1970."""
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the run is ended from outside."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))

    def log(self, message: object) -> None:
        """Write to the run's output, as Lambda's own context does."""
        sys.stdout.write(str(message))


def main(name: str) -> int:
    """Import the handler, call it, and write what it returns. The exit code."""
    started = time.monotonic()
    context = Context(started, started + int(os.environ["NANOGRID_TIMEOUT_MS"]) / 1000)
    with open(os.environ["NANOGRID_PAYLOAD"], encoding="utf-8") as file:  # noqa: PTH123  # pathlib costs an import
        text = file.read()
    handler = find(name)
    try:
        value = handler(json.loads(text) if text else None, context)
    except Exception as error:  # noqa: BLE001  # whatever a handler raises is its own
        return show(error)
    try:
        answer = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return complain(f"what the handler {name} returned is no JSON: {error}")
    with open(os.environ["NANOGRID_RESULT"], "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(answer)
    return 0


def find(name: str) -> Any:
    """The handler `module.function`; the module may be named with slashes, as for AWS Lambda."""
    module, _, function = name.replace("/", ".").rpartition(".")
    try:
        __import__(module)
    except Exception as error:  # noqa: BLE001
        if isinstance(error, ModuleNotFoundError) and error.name and (module + ".").startswith(error.name + "."):
            sys.exit(complain(f"the handler {name} names the module {error.name}, which is not in the code"))
        sys.exit(show(error))
    handler = getattr(sys.modules[module], function, None)
    if not callable(handler):
        sys.exit(complain(f"the handler {name} names no function: {module} has no {function} that can be called"))
    return handler


def show(error: Exception) -> int:
    """Print a traceback from the function's first own line on; the exit code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.excepthook(type(error), error, trace)
    return 1


def complain(sentence: str) -> int:
    """Say what is wrong with the function; the exit code."""
    sys.stderr.write(f"nanogrid: {sentence}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
