"""Reads the results stream in batches: a single reader that keeps its own place, or with a consumer group.

The rule: nothing is delivered twice without need, and nothing is skipped silently. Entries trimmed before they were read are
counted by the numbers on both sides of the gap, because Redis does not report them (7.0 does not count what MAXLEN removes).
If the numbers fall, or a place that was reached no longer exists, Redis has lost results, by a failover to a replica that
lacked some of them or by a restart. Their number is unknown, so `missed` is None then, and never 0.
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
"""Largest number of entries fetched at a time."""

GROUP_BATCH = 20
"""The same for a consumer of a group: the other consumers cannot get what it has fetched."""

LOST = "Redis has lost results, or its stream was emptied; their number is unknown: %s"

Entry = tuple[str, Mapping[str, str]]


@dataclass(frozen=True)
class Batch:
    """Entries in order. `missed`: how many before them were lost, None if unknown. `caught_up`: the stream had no further entry."""

    entries: Sequence[Entry] = ()
    missed: int | None = 0
    caught_up: bool = False


class StreamReader(Protocol):
    """A way to read the stream. Every method may raise redis-py's errors; call `open` before the first `read` and after each error."""

    @property
    def place(self) -> str:
        """Id of the entry after which reading continues."""

    def open(self) -> None:
        """Find the place at which to continue."""

    def read(self, wait_s: float) -> Batch:
        """Return the next entries, and wait for them at most this long. 0: do not wait."""

    def done(self, entry_id: str) -> None:
        """The entry was handled and must not be delivered again."""

    def skip(self, entry_id: str) -> None:
        """Like `done`, for entries that the caller does not handle. Redis may learn of several of them together, later."""


class SingleReader:
    """Reads without a group: every reader gets all entries, and its place is lost with it."""

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
        """Check that the stream still has this reader's place.

        If the stream ends before the place, go back to its end: the next entry may have a smaller id. If the last entry that
        was read is gone, check whether it was trimmed as the oldest one, or lost.
        """
        try:
            about: dict[str, Any] = self._redis.xinfo_stream(self._stream)
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return  # the next entry starts again at number 1
        last = str(about["last-generated-id"])
        if place_of(last) < place_of(self.place):
            self._note_lost(last)
            self.place = last
        elif self._was_reached(about) and not self._redis.xrange(self._stream, self.place, self.place):
            self._note_lost(last)

    def _was_reached(self, about: dict[str, Any]) -> bool:
        """Whether this reader has read the entry at its place, and that one cannot have been trimmed: an older one exists."""
        first = about["first-entry"]
        return self._has_read and bool(first) and place_of(str(first[0])) < place_of(self.place)

    def _note_lost(self, last: str) -> None:
        self._lost = True
        log.warning(LOST, f"the stream ends with {last}, and {self.place} is not in it")

    def done(self, entry_id: str) -> None:
        """Nothing to do: no other reader needs to know."""

    skip = done


class GroupReader:
    """Reads as one consumer of a group: Redis keeps the place, and delivers entries again that were not acknowledged.

    First come entries that this consumer received before and did not acknowledge, then entries that other consumers have not
    acknowledged for longer than `abandoned_s`, then new entries. A group that does not exist is created at `start`.
    """

    def __init__(
        self, client: redis.Redis, stream: str, start: str, *, group: str, consumer: str, abandoned_s: float
    ) -> None:
        self._redis, self._stream, self._start = client, stream, start
        self._group, self._consumer, self._abandoned_s = group, consumer, abandoned_s
        self._handled: list[str] = []
        self._own: str | None = None
        self._others = "0-0"
        self._next_claim = 0.0
        self._lost = False
        self._claim_unanswered = False
        self.place = ""

    def open(self) -> None:
        """Create the group if it does not exist, and go back to the unacknowledged entries of this consumer."""
        try:
            place = position(self._redis, self._stream, self._start)
            self._redis.xgroup_create(self._stream, self._group, id=place, mkstream=True)
            if self.place:
                self._lost = True
                log.warning("the group %s was gone from Redis; it is created again, after %s", self._group, place)
            self.place = place
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
            self.place = self._not_before(self._delivered(self._redis.xinfo_groups(self._stream)))
        if self._claim_unanswered:  # the lost answer may have named trimmed entries of other consumers
            self._lost, self._claim_unanswered = True, False
        self._start = ALL  # if the group is lost from now on, its followers need everything that they have not read
        self._own, self._others, self._next_claim = "0-0", "0-0", 0.0
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
            if time.monotonic() >= self._next_claim and (left := self._take_over()):
                return left
            fresh = self._read_new()
            if fresh.entries or not wait_s:
                return fresh
            wait_s = min(wait_s, max(self._next_claim - time.monotonic(), 0.001))
            # This read is only a wake-up: its entries are read again for the group. A blocking read cannot detect a gap.
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
        """Read this consumer's unacknowledged entries, from before a restart or from an answer that was lost."""
        answer = self._redis.xreadgroup(self._group, self._consumer, {self._stream: after}, count=GROUP_BATCH)
        entries = _entries(answer)
        self._own = entries[-1][0] if entries else None
        return self._without_trimmed(entries)

    def _take_over(self) -> Batch | None:
        """Take over entries of consumers that are gone, a batch at a time. Returns None if there are none."""
        self._claim_unanswered = True
        answer: Any = self._redis.xautoclaim(
            self._stream, self._group, self._consumer, int(self._abandoned_s * 1000), self._others, count=GROUP_BATCH
        )
        self._claim_unanswered = False
        self._others, entries = str(answer[0]), [(entry_id, fields) for entry_id, fields in answer[1] if entry_id]
        if self._others == "0-0":
            self._next_claim = time.monotonic() + self._abandoned_s / 2
        trimmed = len(answer[2]) if len(answer) > 2 else 0  # Redis 7 and newer reports these only once
        return Batch(entries, trimmed) if entries or trimmed else None

    def _read_new(self) -> Batch:
        """Read entries that are new to the group. The same transaction reads the group's place, so that gaps are exact."""
        with self._redis.pipeline(transaction=True) as both:
            both.xinfo_groups(self._stream)
            both.xreadgroup(self._group, self._consumer, {self._stream: ">"}, count=GROUP_BATCH)
            groups, answer = both.execute()
        before = self._not_before(self._delivered(groups))
        entries = _entries(answer)
        self.place = entries[-1][0] if entries else before
        return Batch(entries, gap(before, entries[0][0])) if entries else Batch(caught_up=True)

    def _delivered(self, groups: Any) -> str:
        """Return the id of the last entry that was delivered to the group."""
        for group in groups:
            if group["name"] == self._group:
                return str(group["last-delivered-id"])
        raise redis.ResponseError(f"NOGROUP {self._group} is gone")

    def _not_before(self, delivered: str) -> str:
        """Return the group's place. It only ever moves forward: if it is before an earlier place, Redis has set it back."""
        if place_of(delivered) < place_of(self.place):
            self._lost = True
            log.warning(LOST, f"the group {self._group} is at {delivered}, and was at {self.place}")
        return delivered

    def _without_trimmed(self, entries: Sequence[Entry]) -> Batch:
        """Separate trimmed entries: Redis keeps their ids until they are acknowledged, but not their fields."""
        trimmed = [entry_id for entry_id, fields in entries if not fields]
        self._handled += trimmed  # not acknowledged at once: they must be counted even if the acknowledgment fails
        return Batch([entry for entry in entries if entry[1]], len(trimmed))


def gap(before: str, first: str) -> int | None:
    """Return how many results are missing between two consecutive ids. None if the numbers fell, so that it is unknown."""
    last, number = number_of(before), number_of(first)
    if number <= last:
        log.warning(LOST, f"{number} follows {last}")
        return None
    return number - last - 1


def _read(client: redis.Redis, stream: str, after: str, wait_s: float, count: int) -> list[Entry]:
    block = {"block": math.ceil(wait_s * 1000)} if wait_s else {}  # 0 would mean no time limit
    return _entries(client.xread({stream: after}, count=count, **block))


def _entries(answer: Any) -> list[Entry]:
    """Return the entries in an answer about one stream, in any form that redis-py uses.

    The form is a pair of name and entries, or a dictionary of that. With `protocol=3` in the result URL, it is a dictionary
    whose entries are in one more list.
    """
    if not answer:
        return []
    entries = list(next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1])
    return list(entries[0]) if entries and isinstance(entries[0], list) else entries
