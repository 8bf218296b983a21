"""What an entry of the results stream holds: the result, with its large parts cut, and what somebody filters by.

The rule: an entry is small whatever a function wrote, and says what is missing in it. The whole result is under its request id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanogrid.result import ExecutionResult
from nanogrid.settings import Settings

LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""


@dataclass(frozen=True)
class StreamedResult:
    """A result as its entry in the stream tells it.

    `number` counts all results of a deployment, from 1 and without a gap. `id` is the entry's id in Redis. `cut` names the
    fields of `result` that are not whole: `stdout`, `stderr`, `value`. `missed` is how many results right before this one
    were gone from the stream before this follower read them; None where Redis has lost results, and nobody can tell how many.
    """

    number: int
    id: str
    result: ExecutionResult
    cut: tuple[str, ...] = ()
    missed: int | None = 0

    @property
    def stored_at_ms(self) -> int:
        """When the result was stored, in milliseconds since 1970, by the clock of Redis."""
        return int(self.id.partition("-")[0])

    def to_wire(self) -> dict[str, Any]:
        """The camelCase JSON object."""
        return {
            "number": self.number,
            "id": self.id,
            "missed": self.missed,
            "cut": list(self.cut),
            "result": self.result.to_wire(),
        }


def fields_of(result: ExecutionResult, settings: Settings) -> list[str]:
    """The names and values of a result's entry, in turn."""
    small, cut = shortened(result, settings.stream_output_limit_bytes, settings.stream_value_limit_bytes)
    # ASCII: no half of a surrogate pair, which JSON can name and UTF-8 cannot, makes the result unreadable elsewhere.
    text = json.dumps(small.to_wire(), separators=(",", ":"))
    return [
        *("requestId", json_text(result.request_id)),
        *("functionId", json_text(result.function_id)),
        *("outcome", result.outcome.value),
        *("cut", ",".join(cut)),
        *("result", text),
    ]


def streamed(entry_id: str, fields: Mapping[str, str], missed: int | None = 0) -> StreamedResult:
    """An entry that was read. Raises ValueError or KeyError where it is none of ours."""
    return StreamedResult(
        number=number_of(entry_id),
        id=entry_id,
        result=ExecutionResult.from_wire(json.loads(fields["result"])),
        cut=tuple(fields["cut"].split(",")) if fields["cut"] else (),
        missed=missed,
    )


def number_of(entry_id: str) -> int:
    """The number of a result: what stands behind the dash."""
    return int(entry_id.partition("-")[2] or 0)


def place_of(entry_id: str) -> tuple[int, int]:
    """An entry's id as Redis orders them."""
    ms, _, number = entry_id.partition("-")
    return int(ms or 0), int(number or 0)


def shortened(result: ExecutionResult, output_bytes: int, value_bytes: int) -> tuple[ExecutionResult, tuple[str, ...]]:
    """A result whose parts keep to limits, and the names of those that were cut.

    Kept are the first bytes of stdout, and the last ones of stderr: what went wrong stands at its end. A value that is too
    long is left out: half of it would be no JSON.
    """
    changes: dict[str, Any] = {}
    if _is_longer(result.stdout, output_bytes):
        first = result.stdout[:output_bytes].encode(errors="replace")[:output_bytes]
        changes |= {"stdout": first.decode(errors="ignore"), "stdout_truncated": True}
    if _is_longer(result.stderr, output_bytes):
        data = result.stderr[-output_bytes - 1 :].encode(errors="replace")
        changes |= {"stderr": data[len(data) - output_bytes :].decode(errors="ignore"), "stderr_truncated": True}
    if result.value is not None and len(json.dumps(result.value, separators=(",", ":"))) > value_bytes:
        changes["value"] = None
    cut = tuple(name for name in ("stdout", "stderr", "value") if name in changes)
    return (result.model_copy(update=changes) if changes else result), cut


def json_text(text: str) -> str:
    """A text that any client of Redis can take as UTF-8."""
    return text.encode(errors="replace").decode()


def _is_longer(text: str, size_bytes: int) -> bool:
    """Whether it has more bytes than that; encoded only where its characters do not tell."""
    if len(text) * LONGEST_CHARACTER <= size_bytes:
        return False
    return len(text) > size_bytes or len(text.encode(errors="replace")) > size_bytes
