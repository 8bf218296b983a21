"""How deep JSON may be nested: what is read of deeper text, and that both sides of the wire apply the same bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.wire.json_bounds import MOST_DIGITS, MOST_NESTED, TOO_DEEP, TOO_LONG, problem_of_value, pruned

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=20,
)


def nested(levels: int, value: Any = 1) -> Any:
    """Alternating arrays and objects around a value."""
    for level in range(levels):
        value = [value, level] if level % 2 else {"a": value}
    return value


def cut(value: Any, most: int) -> Any:
    """The expected result of `pruned`, computed from values."""
    if isinstance(value, list):
        return [cut(each, most - 1) for each in value] if most else None
    if isinstance(value, dict):
        return {name: cut(each, most - 1) for name, each in value.items()} if most else None
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (1, None),
        (nested(MOST_NESTED), None),
        (nested(MOST_NESTED + 1), TOO_DEEP),
        (nested(50_000), TOO_DEEP),
        ([nested(3), nested(MOST_NESTED - 1)], None),
        ([nested(3), nested(MOST_NESTED)], TOO_DEEP),
        (10**MOST_DIGITS - 1, None),
        (10**MOST_DIGITS, TOO_LONG),
        (nested(5, -(10**MOST_DIGITS)), TOO_LONG),
    ],
    ids=range(9),
)
def test_a_value_is_judged_by_its_depth_and_its_numbers(value: Any, problem: str | None) -> None:
    """A value exactly at the bound passes; no value causes a recursion."""
    assert problem_of_value(value) == problem


def test_a_value_that_holds_itself_is_too_deep() -> None:
    """Also if it contains itself twice, which would double the work at each level."""
    value: list[Any] = []
    value += [value, value]
    assert problem_of_value(value) == TOO_DEEP


@given(json_values, st.integers(0, 5))
def test_what_is_cut_off_is_null_and_all_else_is_kept(value: Any, most: int) -> None:
    """For any text: brackets and quotes in strings, escapes, empty arrays."""
    text = json.dumps(value)
    assert json.loads(pruned(text, most)) == cut(value, most)


@given(st.text(alphabet='[]{}"\\a,:', max_size=40), st.integers(0, 3))
def test_no_text_makes_cutting_raise(text: str, most: int) -> None:
    """The text need not be JSON, before or after."""
    assert pruned(text, most) is text or "null" in pruned(text, most)
