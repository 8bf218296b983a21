"""The base class of requests and results: camelCase in JSON, snake_case in Python, one alias generator for all."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel


def number_only(value: Any) -> Any:
    """The value, unless it is a boolean: Python accepts True as 1, but a boolean for a number is a mistake. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is a boolean; accepted are numbers")  # noqa: TRY004  # the error that pydantic expects
    return value


NO_BOOLEAN = BeforeValidator(number_only)
WholeNumber = Annotated[int, NO_BOOLEAN]
Number = Annotated[float, NO_BOOLEAN]
"""Numbers that refuse booleans. Every number in a request or result is one of them."""


def check_number(model: type[BaseModel], value: Any, name: str | None) -> Any:
    """The value of a model's field, unchanged. Raises ValueError for a boolean if the field is a number."""
    annotation = model.model_fields[str(name)].annotation
    return number_only(value) if {int, float} & {annotation, *get_args(annotation)} else value


class Wire(BaseModel):
    """Base class of the objects in requests and results. Immutable; unknown fields are refused.

    Fields that are numbers refuse booleans by their type, not by a validator of all fields: each call of such a validator costs
    more than pydantic's own check.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,  # the input may be a payload, and errors are logged
    )
