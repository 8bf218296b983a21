"""What a producer asks for: one immutable, checked request, and the queue and time limits that follow from it.

`parse_request` is the only way from wire data to a request: at the producer it raises before anything is sent, in the
worker it says what is wrong with a bare message.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, NamedTuple

from pydantic import Field, JsonValue, StringConstraints, ValidationError, field_validator
from pydantic_core import ErrorDetails

from nanogrid.aws_events import event_in_place_of_a_request
from nanogrid.errors import InvalidRequestError
from nanogrid.json_bounds import problem_of_value
from nanogrid.settings import Settings
from nanogrid.wire import Wire

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+=~-]*$"
RequestId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=ID_PATTERN)]
SECRET_FIELDS = ("payload", "env")
"""What is wrong with a request stands in logs and in its result; what is in these fields does not."""
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HANDLER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$"


class FunctionRequest(Wire):
    """One request to run one function once.

    `s3_bucket` and `s3_key` name an archive (zip, or tar with gzip, bzip2, xz or no compression). `payload` is any JSON value: the
    function's stdin, and the file named by `NANOGRID_PAYLOAD`. `code_sha256` is the hex digest of the S3 object.
    `max_age_ms` counts from the moment the request was sent: an older one is answered, not run.
    """

    request_id: RequestId
    function_id: str = Field(min_length=1, max_length=200)
    runtime: str
    s3_bucket: str = Field(min_length=3, max_length=255)
    s3_key: str = Field(min_length=1, max_length=1024)
    timeout_ms: int = Field(gt=0)
    memory_mb: int = Field(ge=6)
    cpus: float = Field(gt=0, allow_inf_nan=False)
    payload: JsonValue = None
    env: dict[str, str] = Field(default_factory=dict)
    code_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", to_lower=True)] | None = None
    network: str = "none"
    max_age_ms: int | None = Field(default=None, gt=0)
    handler: Annotated[str, StringConstraints(pattern=HANDLER_PATTERN, max_length=200)] | None = None

    @field_validator("env")
    @classmethod
    def _usable_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not ENV_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no usable name; accepted are letters, digits and _, not starting with a digit"
                )
            if name.startswith("NANOGRID_"):
                raise ValueError(f"{name!r} is reserved; names must not start with NANOGRID_")
            if wrong := _not_for_environments(value):
                raise ValueError(f"the value of {name!r} holds {wrong}, which no environment can carry")
        return env

    @field_validator("function_id")
    @classmethod
    def _usable_id(cls, function_id: str) -> str:
        if wrong := _not_for_environments(function_id):
            raise ValueError(f"{function_id!a} holds {wrong}, which no environment can carry")
        return function_id

    def to_wire(self) -> dict[str, Any]:
        """The camelCase JSON object, without fields that hold nothing."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _not_for_environments(text: str) -> str:
    """What keeps a text from being a variable's value; "" for nothing."""
    if "\0" in text:
        return "a NUL byte"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "half a character (a lone surrogate)"
    return ""


FIELDS: list[str] = [field.alias or name for name, field in FunctionRequest.model_fields.items()]


class TimeLimits(NamedTuple):
    """Celery's limits for one call, in seconds."""

    soft_s: float
    hard_s: float


def time_limits(timeout_ms: int, settings: Settings) -> TimeLimits:
    """Celery's limits for a run of `timeout_ms`: they guard the platform, the executor ends the function itself.

    soft = timeout + overhead (fetch, container start), hard = soft + grace.
    """
    soft_s = timeout_ms / 1000 + settings.overhead_s
    return TimeLimits(soft_s, soft_s + settings.hard_limit_grace_s)


def parse_request(data: object, settings: Settings, *, request_id: str | None = None) -> FunctionRequest:
    """Check a wire object and fill in defaults.

    `request_id` is used where the object has none. Raises InvalidRequestError for the first thing that is wrong: one
    sentence that names the field, the value and what is accepted.
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
        if (event := event_in_place_of_a_request(data)) is not None:
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


def _sentence(error: ErrorDetails) -> InvalidRequestError:
    """One sentence for pydantic's first finding."""
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
