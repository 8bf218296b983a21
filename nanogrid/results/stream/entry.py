"""What an entry of the results stream holds: the result with its large parts cut, and the fields that followers filter by.

The rule: an entry is small whatever a function wrote, and names the parts that were cut. The full result is stored under its
request id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanogrid.result import ExecutionResult
from nanogrid.settings import Settings

LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character."""


@dataclass(frozen=True)
class StreamedResult:
    """A result as read from the stream.

    `number` counts all results of a deployment, from 1 and without gaps. `id` is the entry's id in Redis. `cut` names the
    incomplete fields of `result`: `stdout`, `stderr`, `value`. `missed` is how many results directly before this one were
    removed from the stream before this follower read them; None if Redis has lost results and their number is unknown.
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
        """Return the camelCase JSON object."""
        return {
            "number": self.number,
            "id": self.id,
            "missed": self.missed,
            "cut": list(self.cut),
            "result": self.result.to_wire(),
        }


def fields_of(result: ExecutionResult, settings: Settings) -> list[str]:
    """Return names and values of a result's entry, alternating."""
    small, cut = shortened(result, settings.stream_output_limit_bytes, settings.stream_value_limit_bytes)
    # ASCII: JSON can express a lone surrogate and UTF-8 cannot; it must not make the result unreadable elsewhere.
    text = json.dumps(small.to_wire(), separators=(",", ":"))
    return [
        *("requestId", json_text(result.request_id)),
        *("functionId", json_text(result.function_id)),
        *("outcome", result.outcome.value),
        *("cut", ",".join(cut)),
        *("result", text),
    ]


def streamed(entry_id: str, fields: Mapping[str, str], missed: int | None = 0) -> StreamedResult:
    """Parse an entry. Raises ValueError or KeyError if NanoGrid did not write it."""
    return StreamedResult(
        number=number_of(entry_id),
        id=entry_id,
        result=ExecutionResult.from_wire(json.loads(fields["result"])),
        cut=tuple(fields["cut"].split(",")) if fields["cut"] else (),
        missed=missed,
    )


def number_of(entry_id: str) -> int:
    """Return the number of a result, the part of the entry's id after the dash."""
    return int(entry_id.partition("-")[2] or 0)


def place_of(entry_id: str) -> tuple[int, int]:
    """Return an entry's id as a pair that sorts as in Redis."""
    ms, _, number = entry_id.partition("-")
    return int(ms or 0), int(number or 0)


def shortened(result: ExecutionResult, output_bytes: int, value_bytes: int) -> tuple[ExecutionResult, tuple[str, ...]]:
    """Return the result with its parts cut to the limits, and the names of the parts that were cut.

    The first bytes of stdout are kept, and the last bytes of stderr, because errors are at its end. A value that is too long
    is left out: a part of it would not be valid JSON.
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
    """Return a text that any Redis client can decode as UTF-8."""
    return text.encode(errors="replace").decode()


def _is_longer(text: str, size_bytes: int) -> bool:
    """Whether a text has more than `size_bytes` bytes. Encodes it only if its length does not decide."""
    if len(text) * LONGEST_CHARACTER <= size_bytes:
        return False
    return len(text) > size_bytes or len(text.encode(errors="replace")) > size_bytes
