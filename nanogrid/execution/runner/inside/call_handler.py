"""Calls a handler with the payload. Runs inside the container, as `python /nanogrid/runner/call_handler.py module.function`.

The handler finds what AWS Lambda's own runtime (`awslambdaric`) provides: the context, the root logger's handler, unbuffered output, and a
serializer that knows decimals, named tuples and bytes. What it returns is the result's `value`. The rules: a handler's error looks as
it would without this file, and what Lambda refuses is refused. Imports nothing of NanoGrid and runs on Python 3.9 and newer.
"""

# No `from __future__ import ...`: it is an import too, and would run before `sys.path` is set.
import os
import sys

sys.path[0] = os.getcwd()  # noqa: PTH109  # before any import: the function's own modules come first

import json  # noqa: E402
import logging  # noqa: E402
import time  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Iterable
    from typing import Any

SCALARS = {str, int, float, bool, type(None)}
TEXT_FORMAT = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
NOT_AWAITED = " (Lambda does not await handlers either: call asyncio.run in one that is not async)"


class CognitoIdentity:
    """The app that called, always empty."""

    cognito_identity_id = None
    cognito_identity_pool_id = None

    def __repr__(self) -> str:
        return "CognitoIdentity([cognito_identity_id=None,cognito_identity_pool_id=None])"


class LambdaContext:
    """What a handler can read about its run."""

    client_context = None
    tenant_id = None

    def __init__(self, started: float, deadline: float) -> None:
        """`started` and `deadline` are seconds of CLOCK_MONOTONIC."""
        known = os.environ.get
        region = known("AWS_REGION", "us-east-1")
        self.aws_request_id = self.request_id = os.environ["NANOGRID_REQUEST_ID"]
        self.log_group_name = known("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = known("AWS_LAMBDA_LOG_STREAM_NAME")
        self.function_name = known("AWS_LAMBDA_FUNCTION_NAME")
        self.memory_limit_in_mb = known("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.function_version = known("AWS_LAMBDA_FUNCTION_VERSION")
        self.invoked_function_arn = f"arn:aws:lambda:{region}:000000000000:function:{self.function_name}"
        self.identity = CognitoIdentity()
        self.deadline = time.time() + deadline - started
        """When the run is ended from outside, in seconds since 1970."""
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until the run is ended from outside."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))

    def w3c(self) -> dict[str, str]:
        """Return the trace context that the caller sent: always empty."""
        return {}

    def log(self, message: object) -> None:
        """Write to the run's output, as Lambda's own context does."""
        sys.stdout.write(str(message))

    def __repr__(self) -> str:
        names = (
            *("aws_request_id", "log_group_name", "log_stream_name", "function_name", "memory_limit_in_mb"),
            *("function_version", "invoked_function_arn", "client_context", "identity", "tenant_id"),
        )
        return f"LambdaContext([{','.join(f'{name}={getattr(self, name)}' for name in names)}])"


class Unbuffered:
    """A stream that is flushed after each write, so that output is complete however the handler ends."""

    def __init__(self, stream: "Any") -> None:
        self.stream = stream

    def __enter__(self) -> "Unbuffered":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        """Write and flush."""
        self.stream.write(text)
        self.stream.flush()

    def writelines(self, texts: "Iterable[str]") -> None:
        """Write all and flush."""
        self.stream.writelines(texts)
        self.stream.flush()


class LambdaLoggerHandler(logging.Handler):
    """The root logger's handler: writes whole lines to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as the formatter returns it, including the line end."""
        sys.stdout.write(self.format(record))


class LambdaLoggerFilter(logging.Filter):
    """Passes every record, and adds the attributes that formats may use."""

    request_id = ""
    """Empty while the function's modules are imported."""

    def filter(self, record: "Any") -> bool:
        """Add the request's attributes."""
        record.aws_request_id = self.request_id
        record.tenant_id = None
        return True


def set_up_output() -> None:
    """Set up streams and the root logger as Lambda's runtime does, by the same variables."""
    sys.stdout, sys.stderr = Unbuffered(sys.stdout), Unbuffered(sys.stderr)
    logging.Formatter.converter = time.gmtime
    handler = LambdaLoggerHandler()
    handler.addFilter(LambdaLoggerFilter())
    if os.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON":
        handler.setFormatter(json_formatter())
    else:
        handler.setFormatter(logging.Formatter(TEXT_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper().replace("TRACE", "DEBUG")
    if level in logging._nameToLevel:
        logging.root.setLevel(level)
    logging.root.addHandler(handler)


def take_back_streams() -> None:
    """Restore Python's own streams for its end, unless the function has replaced them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is Unbuffered:
            setattr(sys, name, stream.stream)


def json_formatter() -> logging.Formatter:
    """Return the formatter from `json_logs.py`, which is read only if a function chooses it."""
    path = os.path.dirname(os.path.abspath(__file__)) + "/json_logs.py"  # noqa: PTH100, PTH120
    names: dict[str, Any] = {"__name__": "json_logs"}
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        exec(compile(file.read(), path, "exec"), names)  # noqa: S102  # a program of ours
    formatter: logging.Formatter = names["JsonFormatter"]()
    return formatter


def encode(value: "Any") -> str:
    """Return JSON as Lambda's serializer writes it, with NaN as `NaN`. Raises TypeError or ValueError for values that it refuses.

    Decimals keep their digits, named tuples become objects, bytes become text.
    """
    if type(value) in SCALARS or isinstance(value, (str, int, float)):
        return json.dumps(value)
    if isinstance(value, bytes):
        return json.dumps(str(value, "utf-8"))
    if not isinstance(value, list):
        as_dict = getattr(value, "_asdict", None)
        if callable(as_dict):
            value = as_dict()
            if not isinstance(value, dict):
                raise TypeError(f"_asdict() must return a dict, not {type(value).__name__}")
    if isinstance(value, (list, tuple)):
        if SCALARS.issuperset(map(type, value)):
            return json.dumps(value)
        return "[" + ", ".join(map(encode, value)) + "]"
    if isinstance(value, dict):
        if SCALARS.issuperset(map(type, value.values())) and {str}.issuperset(map(type, value)):
            return json.dumps(value)
        return "{" + ", ".join([key_of(key) + ": " + encode(each) for key, each in value.items()]) + "}"
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return "NaN" if value.is_nan() else str(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def key_of(key: "Any") -> str:
    """Return an object's key as JSON."""
    if isinstance(key, bytes):
        key = str(key, "utf-8")
    if isinstance(key, str):
        return json.dumps(key)
    if type(key) in SCALARS or isinstance(key, (int, float)):
        return f'"{json.dumps(key)}"'
    raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")


def main(name: str) -> int:
    """Import the handler, call it, and write what it returns. Returns the exit code."""
    started = time.monotonic()
    context = LambdaContext(started, started + int(os.environ["NANOGRID_TIMEOUT_MS"]) / 1000)
    set_up_output()
    with open(os.environ["NANOGRID_PAYLOAD"], encoding="utf-8") as file:  # noqa: PTH123  # pathlib costs an import
        text = file.read()
    try:
        handler = find(name)
        LambdaLoggerFilter.request_id = context.aws_request_id
        value = handler(json.loads(text) if text else None, context)
    except SystemExit as exit_:
        if exit_.code:
            raise
        return complain(f"the handler {name} ended the process instead of returning")
    except Exception as error:  # noqa: BLE001  # a handler can raise anything
        return show(error)
    try:
        answer = value if isinstance(value, bytes) else encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        hint = NOT_AWAITED if type(value).__name__ == "coroutine" else ""
        return complain(f"the handler {name} returned a value that is not JSON: {error}{hint}")
    with open(os.environ["NANOGRID_RESULT"], "wb") as file:  # noqa: PTH123
        file.write(answer)
    return 0


def find(name: str) -> "Any":
    """Return the handler `module.function`. The module may be written with slashes, as for AWS Lambda."""
    module, _, function = name.rpartition(".")
    module = module.replace("/", ".")
    top = module.partition(".")[0]
    if top in sys.builtin_module_names:
        fail(f"the handler {name} cannot be found: {top} is a built-in module of Python; rename the file")
    try:
        __import__(module)
    except Exception as error:  # noqa: BLE001
        if isinstance(error, ModuleNotFoundError) and error.name and (module + ".").startswith(error.name + "."):
            fail(f"the handler {name} names the module {error.name}, which is not in the code")
        raise SystemExit(show(error)) from None
    handler = getattr(sys.modules[module], function, None)
    if not callable(handler):
        fail(f"the handler {name} does not exist: {module} has no callable {function}")
    return handler


def show(error: Exception) -> int:
    """Print a traceback from the function's first own line on. Returns the exit code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.excepthook(type(error), error, trace)
    return 1


def complain(sentence: str) -> int:
    """Write what is wrong with the function to stderr. Returns the exit code."""
    sys.stderr.write(f"nanogrid: {sentence}\n")
    return 1


def fail(sentence: str) -> None:
    """Write what is wrong with the function to stderr, and exit."""
    raise SystemExit(complain(sentence))


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1]))
    finally:
        take_back_streams()
