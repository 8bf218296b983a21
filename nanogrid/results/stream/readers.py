"""Reads the results stream in batches: for one reader that remembers by itself where it is, or with a consumer group.

The rule: nothing is delivered twice without need, and nothing is left out in silence. What was trimmed before it was read is
counted by the numbers on both sides of the gap: Redis itself does not tell (7.0 keeps no account of what MAXLEN removes). Where
the numbers fall, or a place that was reached is there no more, Redis has lost results: a failover to a replica that had not all
of them, or a restart. How many nobody can tell, so `missed` is None then, and never 0.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import redis

from nanogrid.results.stream.entry import number_of, place_of
from nanogrid.results.stream.position import ALL, position

log = logging.getLogger(__name__)

BATCH = 100
"""Most entries that are fetched at a time."""

GROUP_BATCH = 20
"""The same for a consumer of a group: the others cannot have what it has in hand."""

LOST = "Redis has lost results, or its stream was emptied; how many nobody can tell: %s"

Entry = tuple[str, Mapping[str, str]]


@dataclass(frozen=True)
class Batch:
    """Entries in their order, and how many were gone before them; None: unknown. `caught_up`: there was no more to read just then."""

    entries: Sequence[Entry] = ()
    missed: int | None = 0
    caught_up: bool = False


class StreamReader(Protocol):
    """A way to read. Whatever it asks of Redis may fail; `open` comes before the first `read` and after every failure."""

    @property
    def place(self) -> str:
        """Id of the entry after which it goes on."""

    def open(self) -> None:
        """Find the place to go on from."""

    def read(self, wait_s: float) -> Batch:
        """The next entries; waits for them this long at most. 0: does not wait."""

    def done(self, entry_id: str) -> None:
        """The entry was handled: it need not come again."""

    def skip(self, entry_id: str) -> None:
        """Like `done`, for entries that nobody handles; may be told to Redis later, together."""


class SingleReader:
    """Reads without a group: every reader gets all entries, and where it is goes with it."""

    def __init__(self, client: redis.Redis, stream: str, start: str) -> None:
        self._redis, self._stream, self._start = client, stream, start
        self._lost = False
        self._has_read = False
        self.place = ""

    def open(self) -> None:
        self.place = self.place or position(self._redis, self._stream, self._start)
        self._look_back()

    def read(self, wait_s: float) -> Batch:
        entries = _read(self._redis, self._stream, self.place, wait_s, BATCH)
        if not entries:
            return Batch(caught_up=True)
        missed = None if self._lost else gap(self.place, entries[0][0])
        self._lost = False
        self._has_read = True
        self.place = entries[-1][0]
        return Batch(entries, missed)

    def _look_back(self) -> None:
        """Go back to where the stream ends, where it has nothing as late as this reader's place: what comes next may have a
        smaller id. And see whether what was read last is there still, or was trimmed as the oldest."""
        try:
            about: dict[str, Any] = self._redis.xinfo_stream(self._stream)
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return  # what comes next begins anew, with number 1
        last = str(about["last-generated-id"])
        if place_of(last) < place_of(self.place):
            self._say_lost(last)
            self.place = last
        elif self._was_reached(about) and not self._redis.xrange(self._stream, self.place, self.place):
            self._say_lost(last)

    def _was_reached(self, about: dict[str, Any]) -> bool:
        """Whether this reader has read the entry at its place, and it cannot have been trimmed: an older one is there."""
        first = about["first-entry"]
        return self._has_read and bool(first) and place_of(str(first[0])) < place_of(self.place)

    def _say_lost(self, last: str) -> None:
        self._lost = True
        log.warning(LOST, f"the stream ends with {last}, and {self.place} is not in it")

    def done(self, entry_id: str) -> None:
        """Nobody else has to know."""

    skip = done


class GroupReader:
    """Reads as one consumer of a group: Redis keeps the place, and hands out again what was not acknowledged.

    First comes what this consumer was given before and did not acknowledge, then what others of the group left lying for
    longer than `abandoned_s`, then what nobody of the group was given yet. A group that is not there is made at `start`.
    """

    def __init__(
        self, client: redis.Redis, stream: str, start: str, *, group: str, consumer: str, abandoned_s: float
    ) -> None:
        self._redis, self._stream, self._start = client, stream, start
        self._group, self._consumer, self._abandoned_s = group, consumer, abandoned_s
        self._handled: list[str] = []
        self._own: str | None = None
        self._others = "0-0"
        self._next_look = 0.0
        self._lost = False
        self._is_told_once = False
        self.place = ""

    def open(self) -> None:
        """Make the group where there is none, and go back to what this consumer has in hand."""
        try:
            place = position(self._redis, self._stream, self._start)
            self._redis.xgroup_create(self._stream, self._group, id=place, mkstream=True)
            if self.place:
                self._lost = True
                log.warning("the group %s was gone from Redis; it is made anew, after %s", self._group, place)
            self.place = place
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
            self.place = self._not_before(self._delivered(self._redis.xinfo_groups(self._stream)))
        if self._is_told_once:  # what was trimmed in the hands of others, in an answer that was lost
            self._lost, self._is_told_once = True, False
        self._start = ALL  # a group that is lost from now on has followers that want what they have not seen
        self._own, self._others, self._next_look = "0-0", "0-0", 0.0
        self._acknowledge()

    def read(self, wait_s: float) -> Batch:
        self._acknowledge()
        batch = self._read(wait_s)
        if self._lost and batch.entries:
            self._lost = False
            return replace(batch, missed=None)
        return batch

    def _read(self, wait_s: float) -> Batch:
        try:
            if self._own is not None:
                return self._read_own(self._own)
            if time.monotonic() >= self._next_look and (left := self._take_over()):
                return left
            fresh = self._read_new()
            if fresh.entries or not wait_s:
                return fresh
            wait_s = min(wait_s, max(self._next_look - time.monotonic(), 0.001))
            # Only to be woken: what it returns is read again, as the group's. A read that waits tells nothing of a gap.
            return Batch(caught_up=not _read(self._redis, self._stream, self.place, wait_s, 1))
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            self.open()
            return Batch()

    def done(self, entry_id: str) -> None:
        self._handled.append(entry_id)
        self._acknowledge()

    def skip(self, entry_id: str) -> None:
        self._handled.append(entry_id)

    def _acknowledge(self) -> None:
        if self._handled:
            self._redis.xack(self._stream, self._group, *self._handled)
            self._handled.clear()

    def _read_own(self, after: str) -> Batch:
        """What this consumer has in hand, from a life before or from an answer that was lost on its way."""
        answer = self._redis.xreadgroup(self._group, self._consumer, {self._stream: after}, count=GROUP_BATCH)
        entries = _entries(answer)
        self._own = entries[-1][0] if entries else None
        return self._without_trimmed(entries)

    def _take_over(self) -> Batch | None:
        """What consumers that are gone have in hand, a batch at a time; None where there is nothing."""
        self._is_told_once = True
        answer: Any = self._redis.xautoclaim(
            self._stream, self._group, self._consumer, int(self._abandoned_s * 1000), self._others, count=GROUP_BATCH
        )
        self._is_told_once = False
        self._others, entries = str(answer[0]), [(entry_id, fields) for entry_id, fields in answer[1] if entry_id]
        if self._others == "0-0":
            self._next_look = time.monotonic() + self._abandoned_s / 2
        trimmed = len(answer[2]) if len(answer) > 2 else 0  # Redis 7 and newer; it has forgotten them by now
        return Batch(entries, trimmed) if entries or trimmed else None

    def _read_new(self) -> Batch:
        """What the group was not given yet. Its place is asked for in the same step, so that a gap is seen exactly."""
        with self._redis.pipeline(transaction=True) as both:
            both.xinfo_groups(self._stream)
            both.xreadgroup(self._group, self._consumer, {self._stream: ">"}, count=GROUP_BATCH)
            groups, answer = both.execute()
        before = self._not_before(self._delivered(groups))
        entries = _entries(answer)
        self.place = entries[-1][0] if entries else before
        return Batch(entries, gap(before, entries[0][0])) if entries else Batch(caught_up=True)

    def _delivered(self, groups: Any) -> str:
        """Id of the last entry that anybody of the group was given."""
        for group in groups:
            if group["name"] == self._group:
                return str(group["last-delivered-id"])
        raise redis.ResponseError(f"NOGROUP {self._group} is gone")

    def _not_before(self, delivered: str) -> str:
        """Where the group stands. It only ever moves on: one that stands before what it was seen at has been set back."""
        if place_of(delivered) < place_of(self.place):
            self._lost = True
            log.warning(LOST, f"the group {self._group} stands at {delivered}, and stood at {self.place}")
        return delivered

    def _without_trimmed(self, entries: Sequence[Entry]) -> Batch:
        """Redis remembers the ids of trimmed entries that were not acknowledged, without what was in them."""
        trimmed = [entry_id for entry_id, fields in entries if not fields]
        self._handled += trimmed  # and not at once: they are counted, whatever becomes of the acknowledgement
        return Batch([entry for entry in entries if entry[1]], len(trimmed))


def gap(before: str, first: str) -> int | None:
    """How many results are missing between two ids that follow each other. None: the numbers fell, and nobody can tell."""
    last, number = number_of(before), number_of(first)
    if number <= last:
        log.warning(LOST, f"{number} follows {last}")
        return None
    return number - last - 1


def _read(client: redis.Redis, stream: str, after: str, wait_s: float, count: int) -> list[Entry]:
    block = {"block": math.ceil(wait_s * 1000)} if wait_s else {}  # 0 would be without end
    return _entries(client.xread({stream: after}, count=count, **block))


def _entries(answer: Any) -> list[Entry]:
    """The entries in an answer about one stream, in each shape that redis-py gives it: a pair of name and entries, or a dict
    of that; where the result URL has `protocol=3`, a dict whose entries stand in one more list."""
    if not answer:
        return []
    entries = list(next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1])
    return list(entries[0]) if entries and isinstance(entries[0], list) else entries
