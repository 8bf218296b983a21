"""Batches of SQS: how many entries one call has, and how a call's answer is read.

The rule: an entry's `Id` is its place in the batch, so that each failure in the answer leads back to what was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

BATCH = 10
"""Most entries of one call."""

T = TypeVar("T")


def in_tens(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists of ten; the last one may be shorter."""
    rest = iter(items)
    while part := list(islice(rest, BATCH)):
        yield part


def failures(answer: dict[str, Any], entries: list[T]) -> Iterator[tuple[T, str]]:
    """What a batch's answer reports as failed, each with the reason."""
    for failed in answer.get("Failed") or ():
        yield entries[int(failed["Id"])], str(failed.get("Message") or failed.get("Code"))
