"""A request: one immutable, checked object, its id, and the time limits that follow from it.

The rule: `parse_request` is the only way from wire data to a request. In the producer it raises before anything is sent; in the
worker its error says what is wrong with a bare message.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import re
import uuid
from typing import Annotated, Any, NamedTuple

from pydantic import Field, JsonValue, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from nanogrid.errors import InvalidRequestError
from nanogrid.settings import Settings, current
from nanogrid.wire.aws_events import aws_event_problem
from nanogrid.wire.json_bounds import problem_of_value
from nanogrid.wire.model import NO_BOOLEAN, Wire

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+=~-]*$"
RequestId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=ID_PATTERN)]
SECRET_FIELDS = ("payload", "env", "stdin", "stdinBase64")
"""Fields whose values never appear in error messages: those are logged and stored in results."""
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HANDLER = re.compile(r"{part}(?:[./]{part})*\.{part}".format(part=r"[^\s./\\\x00-\x1f\x7f]+"))
"""`module.function`, as in AWS Lambda: any file name, in folders separated by slashes or dots."""


FROM_SETTINGS = ("timeout_ms", "memory_mb", "cpus")
"""Fields whose defaults come from the deployment's settings."""


class FunctionRequest(Wire):
    """One request to run one function once. Immutable; unknown fields are refused.

    Fields have snake_case names in Python and camelCase names in JSON (`function_id`, `functionId`); the constructor accepts
    both. It raises pydantic's `ValidationError`; `parse_request` and `Client.submit` raise `InvalidRequestError`. The largest
    limits, the runtimes and the networks depend on the deployment: the constructor does not check them, `Client.submit` does.

    A request has at most one input: `payload`, `stdin` or `stdin_base64`.
    """

    request_id: RequestId = ""  # never empty: a validator creates an id before the fields are checked
    """Names the request, its result and its log lines. At most 200 letters, digits and `._:/@+=~-`, starting with a letter or
    digit. Default: a new UUID, after the prefix that the runtime's queue requires. A request that is sent twice with the same
    id runs once."""
    function_id: str = Field(min_length=1, max_length=200)
    """Names the function, 1 to 200 characters. Requests with the same id and code share warm containers."""
    runtime: str
    """Name or alias of a runtime of the deployment, such as `python` or `cpp`."""
    s3_bucket: str = Field(min_length=3, max_length=255)
    """Bucket of the function's code."""
    s3_key: str = Field(min_length=1, max_length=1024)
    """Key of the function's code: a zip, or a tar with gzip, bzip2, xz or no compression."""
    timeout_ms: Annotated[int, Field(gt=0), NO_BOOLEAN] = Field(default_factory=lambda: current().timeout_ms)
    """Longest run in milliseconds, without download, build and container start. Then the function is killed, with the outcome
    `TIMED_OUT`. Default: the setting `timeout_ms`."""
    memory_mb: Annotated[int, Field(ge=6), NO_BOOLEAN] = Field(default_factory=lambda: current().memory_mb)
    """Memory limit in MiB, without swap, including files in `/workspace` and `/tmp`. Default: the setting `memory_mb`."""
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] = Field(default_factory=lambda: current().cpus)
    """CPU limit in CPUs, such as 0.5. Default: the setting `cpus`."""
    payload: JsonValue = None
    """The function's input: any JSON value. The function reads it from stdin, and from the file that `NANOGRID_PAYLOAD` names."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the function. Names consist of letters, digits and `_` and do not start with `NANOGRID_`."""
    code_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", to_lower=True)] | None = None
    """SHA-256 of the S3 object, in hex. Another object is refused. With it, code in the cache needs no request to S3."""
    network: str = "none"
    """Docker network of the function, one of those that the deployment allows. `none`: no network."""
    max_age_ms: Annotated[int, Field(gt=0), NO_BOOLEAN] | None = None
    """Longest time from sending to the start of the run, in milliseconds. An older request is answered with `NOT_RUN`."""
    handler: Annotated[str, StringConstraints(max_length=200)] | None = None
    """`module.function` to call with the payload, instead of running the runtime's command. Only for runtimes with handlers."""
    stdin: str | None = None
    """Text for the function's stdin, in UTF-8, instead of a payload. The constructor also accepts bytes, which become
    `stdin_base64`."""
    stdin_base64: str | None = None
    """Bytes for the function's stdin, in base64, instead of a payload."""

    @model_validator(mode="before")
    @classmethod
    def _an_id_that_its_queue_takes(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "requestId" in data or "request_id" in data:
            return data
        return {**data, "requestId": new_request_id(data, current())}

    @model_validator(mode="before")
    @classmethod
    def _bytes_travel_in_base64(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("stdin"), (bytes, bytearray, memoryview)):
            return data
        rest = {name: value for name, value in data.items() if name != "stdin"}
        return {**rest, "stdinBase64": base64.b64encode(data["stdin"]).decode()}

    @field_validator("stdin")
    @classmethod
    def _usable_text(cls, text: str | None) -> str | None:
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise ValueError("contains half a character (a lone surrogate); send bytes as stdinBase64") from None
        return text

    @field_validator("stdin_base64")
    @classmethod
    def _usable_base64(cls, text: str | None) -> str | None:
        try:
            base64.b64decode(text or "", validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is not base64; accepted are A-Z a-z 0-9 + / with = at the end, in one line") from None
        return text

    @field_validator("env")
    @classmethod
    def _usable_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not ENV_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is not a valid name; accepted are letters, digits and _, not starting with a digit"
                )
            if name.startswith("NANOGRID_"):
                raise ValueError(f"{name!r} is reserved; names must not start with NANOGRID_")
            if wrong := _not_for_environments(value):
                raise ValueError(f"the value of {name!r} contains {wrong}, which environment variables cannot contain")
        return env

    @field_validator("function_id")
    @classmethod
    def _usable_id(cls, function_id: str) -> str:
        if wrong := _not_for_environments(function_id):
            raise ValueError(f"{function_id!a} contains {wrong}, which environment variables cannot contain")
        return function_id

    @field_validator("handler")
    @classmethod
    def _usable_handler(cls, handler: str | None) -> str | None:
        if handler is not None and (problem := problem_of_handler(handler)):
            raise ValueError(problem)
        return handler

    @property
    def input(self) -> JsonValue | bytes:
        """What the function reads from stdin: the payload as a JSON value, or bytes."""
        if self.stdin is not None:
            return self.stdin.encode()
        return self.payload if self.stdin_base64 is None else base64.b64decode(self.stdin_base64)

    def with_payload(self, payload: JsonValue) -> FunctionRequest:
        """A copy of the request with this payload as its only input."""
        return self.model_copy(update={"payload": payload, "stdin": None, "stdin_base64": None})

    def to_wire(self) -> dict[str, Any]:
        """The camelCase JSON object, without fields that are None and without limits that were not given."""
        unset = {name for name in FROM_SETTINGS if name not in self.model_fields_set}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=unset)


def problem_of_handler(handler: str) -> str:
    """What is wrong with a handler's name; "" if nothing is."""
    if HANDLER.fullmatch(handler):
        return ""
    return f"{_show(handler)} does not name a function; accepted is module.function, such as app.run or todos/get.run"


def check_handler(handler: str) -> None:
    """Raise InvalidRequestError if this is not a valid handler name."""
    if problem := problem_of_handler(handler):
        raise InvalidRequestError("handler", problem)


def _not_for_environments(text: str) -> str:
    """Why a text cannot be the value of an environment variable; "" if it can."""
    if "\0" in text:
        return "a NUL byte"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "half a character (a lone surrogate)"
    return ""


FIELDS: list[str] = [field.alias or name for name, field in FunctionRequest.model_fields.items()]


class TimeLimits(NamedTuple):
    """Celery's soft and hard time limit for one task, in seconds."""

    soft_s: float
    hard_s: float


def time_limits(timeout_ms: int, settings: Settings) -> TimeLimits:
    """Celery's limits for a run of `timeout_ms`. They protect the worker; the executor itself ends the function.

    soft = timeout + overhead (fetch, container start), hard = soft + grace.
    """
    soft_s = timeout_ms / 1000 + settings.overhead_s
    return TimeLimits(soft_s, soft_s + settings.hard_limit_grace_s)


def required_prefix(queue: str, settings: Settings) -> str:
    """What every request id in a queue must begin with. Empty: the deployment requires nothing."""
    return settings.request_id_prefixes.get(queue, "")


def id_refusal(request_id: str, queue: str, settings: Settings) -> str | None:
    """Why a message of this queue may not use this request id, or None if it may."""
    required = required_prefix(queue, settings)
    if required:
        if request_id.startswith(required):
            return None
        return f"{request_id!r} does not begin with {required!r}, which the queue {queue} requires"
    owned = next((prefix for prefix in settings.request_id_prefixes.values() if request_id.startswith(prefix)), None)
    if owned is None:
        return None
    return f"{request_id!r} begins with {owned!r}, and such ids belong to another queue than {queue}"


def new_request_id(data: object, settings: Settings) -> str:
    """A new id for a request without one, checked or not, with the prefix that its queue requires."""
    runtime = data.get("runtime") if isinstance(data, dict) else None
    table = settings.runtime_table
    canonical = table.canonical(runtime) if isinstance(runtime, str) else None
    prefix = "" if canonical is None else required_prefix(table[canonical].queue, settings)
    return f"{prefix}{uuid.uuid4()}"


def parse_request(data: object, settings: Settings, *, request_id: str | None = None) -> FunctionRequest:
    """Check a wire object and fill in defaults.

    `request_id` is used if the object has none. Raises InvalidRequestError for the first problem, in one sentence with the
    field, the value and what is accepted.
    """
    if not isinstance(data, dict):
        raise InvalidRequestError("", f"a request must be a JSON object, got {_kind(data)}")
    for field, value in data.items():
        if (problem := problem_of_value(value)) is not None:
            raise InvalidRequestError(str(field), problem)
    filled = {key: value for key, value in data.items() if value is not None}
    if request_id is not None:
        filled.setdefault("requestId", request_id)
    filled.setdefault("timeoutMs", settings.timeout_ms)
    filled.setdefault("memoryMb", settings.memory_mb)
    filled.setdefault("cpus", settings.cpus)
    unknown = [key for key in filled if key not in FIELDS]
    if unknown:
        if (event := aws_event_problem(data)) is not None:
            raise InvalidRequestError("", event)
        raise InvalidRequestError(
            str(unknown[0]), f"unknown field{_suggest(str(unknown[0]))}; accepted are {', '.join(FIELDS)}"
        )
    filled["runtime"] = _canonical_runtime(filled, settings)
    try:
        request = FunctionRequest.model_validate(filled)
    except ValidationError as invalid:
        raise _sentence(invalid.errors()[0]) from None
    _check_limits(request, settings)
    _check_input(request)
    return request


def _canonical_runtime(filled: dict[str, Any], settings: Settings) -> str:
    table = settings.runtime_table
    name = filled.get("runtime")
    accepted = ", ".join(table.accepted())
    if name is None:
        raise InvalidRequestError("runtime", f"missing; accepted are {accepted}")
    canonical = table.canonical(name) if isinstance(name, str) else None
    if canonical is None:
        raise InvalidRequestError("runtime", f"{_show(name)} is not known; accepted are {accepted}")
    return canonical


def _check_limits(request: FunctionRequest, settings: Settings) -> None:
    for field, value, largest in (
        ("timeoutMs", request.timeout_ms, settings.max_timeout_ms),
        ("memoryMb", request.memory_mb, settings.max_memory_mb),
        ("cpus", request.cpus, settings.max_cpus),
    ):
        if value > largest:
            raise InvalidRequestError(field, f"{value} is more than this deployment's largest, {largest}")
    if request.network not in settings.allowed_networks:
        accepted = ", ".join(settings.allowed_networks)
        raise InvalidRequestError("network", f"{_show(request.network)} is not allowed here; accepted are {accepted}")
    if request.handler and not settings.runtime_table[request.runtime].supports_handler:
        raise InvalidRequestError("handler", f"the runtime {request.runtime!r} has no handlers; leave the field out")


def _check_input(request: FunctionRequest) -> None:
    """Raise InvalidRequestError if the request has more than one input, or stdin for a handler."""
    given = {"payload": request.payload, "stdin": request.stdin, "stdinBase64": request.stdin_base64}
    first, *more = [name for name, value in given.items() if value is not None] or [""]
    if more:
        raise InvalidRequestError(more[0], f"{first} is given too, and a function has one input: leave one of them out")
    if request.handler and first in ("stdin", "stdinBase64"):
        raise InvalidRequestError(
            first, "a handler receives only a payload: send the input as payload, or leave handler out"
        )


def _sentence(error: ErrorDetails) -> InvalidRequestError:
    """One sentence for the first error that pydantic found."""
    field = ".".join(str(part) for part in error["loc"]) or "request"
    shown, context = _show(error.get("input")), error.get("ctx", {})
    if field.partition(".")[0] in SECRET_FIELDS:
        shown = _kind(error.get("input"))
    match error["type"]:
        case "missing":
            problem = "missing; it is required"
        case "greater_than" | "greater_than_equal":
            bound = context.get("gt", context.get("ge"))
            problem = (
                f"{shown} is too small; accepted are numbers {'greater than' if 'gt' in context else 'from'} {bound}"
            )
        case "string_pattern_mismatch":
            problem = f"{shown} does not match {context['pattern']}"
        case "string_too_short" | "string_too_long":
            low, high = context.get("min_length"), context.get("max_length")
            bound = f"at least {low}" if low is not None else f"at most {high}"
            problem = f"{shown} has the wrong length; accepted are {bound} characters"
        case "value_error":
            problem = str(context["error"])
        case _:
            problem = f"{shown} is not accepted: {error['msg'][0].lower()}{error['msg'][1:]}"
    return InvalidRequestError(field, problem)


def _suggest(field: str) -> str:
    near = difflib.get_close_matches(field, FIELDS, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(value: object) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
