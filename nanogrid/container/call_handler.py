"""Runs inside the container, as `python /nanogrid/call_handler.py module.function`: calls a handler with the payload.

The handler gets the payload and a context with the names that AWS Lambda uses; what it returns, as JSON, is the result's
`value`. Imports nothing of NanoGrid and works from Python 3.9 on.
"""

import importlib
import json
import os
import sys
import time


class Context:
    """What a handler may know of its run."""

    def __init__(self, deadline: float) -> None:
        self.aws_request_id = os.environ["NANOGRID_REQUEST_ID"]
        self.function_name = os.environ["NANOGRID_FUNCTION_ID"]
        self.memory_limit_in_mb = int(os.environ["NANOGRID_MEMORY_MB"])
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the run is ended from outside."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))


def main(name: str) -> None:
    """Import the handler, call it, and write what it returns."""
    context = Context(time.monotonic() + int(os.environ["NANOGRID_TIMEOUT_MS"]) / 1000)
    sys.path[0] = os.getcwd()  # noqa: PTH109
    module, _, function = name.rpartition(".")
    handler = getattr(importlib.import_module(module), function)
    with open(os.environ["NANOGRID_PAYLOAD"], encoding="utf-8") as file:  # noqa: PTH123  # pathlib costs an import
        text = file.read()
    value = handler(json.loads(text) if text else None, context)
    with open(os.environ["NANOGRID_RESULT"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(value, file)


if __name__ == "__main__":
    main(sys.argv[1])
