"""How deep JSON may be nested and how long its numbers may be, so that every reader of a request can read it.

The rule: producer, transport and worker apply these bounds, not the recursion limit of the first reader. Nothing here recurses,
and nothing raises because of a value or text that others chose.
"""

from __future__ import annotations

import re
from typing import Any

MOST_NESTED = 200
"""Levels of arrays and objects in a field. Parsers and picklers, in Python and elsewhere, fail at a few hundred."""

MOST_DIGITS = 4300
"""Digits of a whole number. Python reads and writes no longer ones."""

_LARGEST = 10**MOST_DIGITS - 1
_SMALLEST = -_LARGEST
_MARKS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)

TOO_DEEP = f"nested more than {MOST_NESTED} levels deep: flatten it, or put it in S3 and send its address"
TOO_LONG = f"holds a whole number of more than {MOST_DIGITS} digits: send it as a string"


def problem_of_value(value: object, most: int = MOST_NESTED) -> str | None:
    """Why a decoded value cannot be sent as JSON, as the end of a sentence; None if it can. A value that contains itself cannot."""
    level = [value] if isinstance(value, (list, dict)) else []
    if _is_long(value):
        return TOO_LONG
    for _ in range(most):
        inner: dict[int, Any] = {}  # each once, however often it is held
        for each in level:
            for member in each.values() if isinstance(each, dict) else each:
                if isinstance(member, (list, dict)):
                    inner[id(member)] = member
                elif _is_long(member):
                    return TOO_LONG
        if not inner:
            return None
        level = list(inner.values())
    return TOO_DEEP


def _is_long(value: object) -> bool:
    return isinstance(value, int) and not _SMALLEST <= value <= _LARGEST


def pruned(text: str, most: int) -> str:
    """JSON text in which everything below `most` levels is null, so that it can be read and its depth checked.

    Text that is nested less deeply is returned unchanged. The result for text that is not JSON is unspecified. Takes linear time.
    """
    if text.count("[") + text.count("{") <= most:
        return text
    kept: list[str] = []
    depth = begin = 0
    quoted = False
    for found in _MARKS.finditer(text):
        mark = found.group()
        if mark == '"':
            quoted = not quoted
        elif quoted or mark[0] == "\\":
            continue
        elif mark in "[{":
            depth += 1
            if depth == most + 1:
                kept += (text[begin : found.start()], "null")
        else:
            depth -= 1
            if depth == most:
                begin = found.end()
    return text if depth or not kept else "".join((*kept, text[begin:]))
