"""Where a follower of the results stream starts: now, at the oldest entry, at a time, or after an entry.

The rule: a position is the id after which to read, and contains the number of the result before it.
"""

from __future__ import annotations

import re
from typing import Any

import redis

from nanogrid.errors import InvalidRequestError
from nanogrid.results.stream.append import counter_key

NOW = "now"
ALL = "all"
PLACE = re.compile(r"[1-9]\d{0,18}(-\d{1,19})?|0-\d{1,19}")


def check_start(start: str) -> str:
    """Return the text unchanged. Raises InvalidRequestError if it is not a position."""
    if start in (NOW, ALL) or PLACE.fullmatch(start):
        return start
    raise InvalidRequestError(
        "start",
        f"{start!r} is not a position in the results stream; accepted are now, all, "
        "an entry's id, and a time in milliseconds since 1970",
    )


def position(client: redis.Redis, stream: str, start: str) -> str:
    """Return the id to read after. It may name an entry that no longer exists: reading continues after its place."""
    if "-" in start:
        return start
    if start not in (NOW, ALL) and (earlier := client.xrevrange(stream, max=int(start) - 1, count=1)):
        return str(earlier[0][0])
    # The counter first: a result appended between the two commands is then read, and does not count as missed.
    last_number = int(str(client.get(counter_key(stream)) or 0))
    try:
        about: dict[str, Any] = client.xinfo_stream(stream)
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return f"0-{last_number}"
    first = about["first-entry"]
    if start == NOW or not first:
        return str(about["last-generated-id"])
    ms, _, number = str(first[0]).partition("-")
    return f"{ms}-{max(int(number) - 1, 0)}"
