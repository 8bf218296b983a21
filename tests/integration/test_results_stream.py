"""The results stream on a real Redis: one entry per result, and followers with and without a group."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import pytest
import redis
from billiard.exceptions import TimeLimitExceeded
from celery.app.task import Context

from nanogrid.client import Client, follow
from nanogrid.result import ExecutionResult, Outcome, not_run
from nanogrid.results.stream.append import counter_key
from nanogrid.results.stream.entry import StreamedResult
from nanogrid.results.stream.follower import follow as follow_stream
from nanogrid.settings import Settings
from nanogrid.telemetry.counters import NOT_APPENDED
from nanogrid.telemetry.events import CountEvent, EventPipe
from nanogrid.wire.names import EXECUTE
from tests.support.redis_proxy import RedisProxy
from tests.support.services import Service, wait_until


class Stream:
    """A results stream for one test: stores results as a worker does, and reads what is in Redis."""

    def __init__(self, settings: Settings, connection: redis.Redis) -> None:
        self.settings, self.redis, self.name = settings, connection, settings.stream_name
        self.client = Client(settings)
        self.app = self.client.app

    def context(self, function: str = "f") -> Context:
        """Celery's context of a running request."""
        return Context(task=EXECUTE, args=({"functionId": function, "runtime": "python"},), hostname="w1", retries=0)

    def store(self, *names: str, function: str = "f", **fields: Any) -> None:
        """Store a result for each name."""
        for name in names:
            told = not_run(self.id(name), function, name).model_copy(update=fields)
            self.app.backend.mark_as_done(self.id(name), told, request=self.context(function))

    def close(self) -> None:
        """Close what the app opened, and what Celery leaves open."""
        self.app.backend.client.close()
        self.app.close()

    def id(self, name: str) -> str:
        """A request id that no other test uses."""
        return f"{self.name}/{name}"

    def entries(self) -> list[Any]:
        """Return every entry of the stream."""
        return list(self.redis.xrange(self.name) or ())

    def follow(self, **options: Any) -> Generator[StreamedResult, None, None]:
        """A follower that ends when it has read everything."""
        return follow(self.settings, **{"start": "all", "idle_s": 0.0, **options})

    def names(self, **options: Any) -> list[str]:
        """Return what such a follower gets."""
        return [self.name_of(found) for found in self.follow(**options)]

    def name_of(self, found: StreamedResult) -> str:
        """The name under which a result was stored."""
        return found.result.request_id.removeprefix(f"{self.name}/")

    def pending(self, group: str) -> int:
        """How many entries were delivered to a group and not acknowledged."""
        return int(self.redis.xpending(self.name, group)["pending"])


@pytest.fixture
def stream(redis_url: str, unique: str) -> Iterator[Stream]:
    """A stream of at most five entries."""
    settings = Settings(result_url=redis_url, stream_name=f"nanogrid:{unique}", stream_entries_limit=5)
    with closing(redis.Redis.from_url(redis_url, decode_responses=True)) as connection:
        here = Stream(settings, connection)
        yield here
        here.close()
        connection.delete(here.name, counter_key(here.name))


def test_every_end_has_one_entry_with_its_number(stream: Stream) -> None:
    """Whatever ended a request, its result is stored and in the stream once, even if it is stored again."""
    backend = stream.app.backend
    stream.store("ran", outcome=Outcome.SUCCEEDED, stdout="hello\n")
    backend.mark_as_revoked(stream.id("cancelled"), "terminated", request=stream.context())
    backend.mark_as_revoked(stream.id("never seen"), "revoked")
    backend.mark_as_failure(stream.id("hung"), TimeLimitExceeded(24), request=stream.context())
    stream.store("ran", outcome=Outcome.FAILED)
    backend.mark_as_failure(stream.id("ran"), TimeLimitExceeded(24), request=stream.context())
    found = list(stream.follow())
    assert [(each.number, stream.name_of(each), each.result.outcome.value) for each in found] == [
        (1, "ran", "SUCCEEDED"),
        (2, "cancelled", "CANCELLED"),
        (3, "never seen", "CANCELLED"),
        (4, "hung", "NOT_RUN"),
    ]
    assert stream.client.result(stream.id("ran")).stdout == found[0].result.stdout == "hello\n"
    assert [each.result.runtime for each in found] == [None, "python", None, "python"]


def test_the_result_of_another_task_has_none(stream: Stream) -> None:
    """The stream holds ExecutionResults and nothing else."""
    stream.app.backend.mark_as_done(stream.id("other"), {"a": 1}, request=Context(task="probe.quick"))
    assert stream.entries() == []


def test_the_stream_is_bounded(stream: Stream) -> None:
    """The oldest entries are removed and free their memory; the numbers continue."""
    stream.store(*"abcdefgh")
    assert [found.number for found in stream.follow()] == [4, 5, 6, 7, 8]
    assert stream.names() == list("defgh")


def test_no_stream_where_its_limit_is_zero(stream: Stream) -> None:
    """Results are stored as usual, and Redis holds nothing else."""
    settings = stream.settings.model_copy(update={"stream_entries_limit": 0})
    with closing(Stream(settings, stream.redis)) as without:
        without.store("a")
    assert stream.client.result(stream.id("a")).outcome is Outcome.NOT_RUN
    assert not stream.redis.exists(stream.name, counter_key(stream.name))


def test_what_cannot_be_appended_is_stored_counted_and_logged(stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    """The stream's key holds something else: no result is lost, and followers see by the number that there was one."""
    stream.redis.set(stream.name, "no stream")
    with closing(EventPipe()) as reader:
        stream.store("a")
        told = [event for event in reader.read() if isinstance(event, CountEvent)]
    assert told == [CountEvent(NOT_APPENDED)]
    assert "could not be appended" in caplog.text
    assert "WRONGTYPE" in caplog.text
    assert stream.client.result(stream.id("a")).outcome is Outcome.NOT_RUN
    stream.redis.delete(stream.name)
    stream.store("b")
    assert [found.number for found in stream.follow()] == [2]


def test_a_clock_that_is_set_back_stops_nothing(stream: Stream) -> None:
    """Ids grow even then: the last entry's time is reused until the clock has caught up."""
    stream.store("a")
    stream.redis.xadd(stream.name, {"from": "the future"}, id="9999999999999-2")
    stream.redis.set(counter_key(stream.name), 2)
    stream.store("b", "c")
    assert [entry_id for entry_id, _ in stream.entries()][2:] == ["9999999999999-3", "9999999999999-4"]
    assert stream.names() == ["a", "b", "c"]


def test_a_follower_without_a_group_begins_where_it_is_told(stream: Stream) -> None:
    """At the oldest entry, at a time, after an entry, or with the next one."""
    assert stream.names(start="now") == []
    stream.store("a", "b", "c")
    first, second, _ = (found.id for found in stream.follow())
    assert stream.names(start="all") == ["a", "b", "c"]
    assert stream.names(start=first) == ["b", "c"]
    assert stream.names(start=second.partition("-")[0])[-1] == "c"
    assert stream.names(start="1") == ["a", "b", "c"]
    assert stream.names(start="9999999999999") == []
    assert stream.names(start="now") == []


def test_a_follower_waits_for_what_comes(stream: Stream) -> None:
    """Started before the stream exists, it gets the first result and the next one."""
    following = follow(stream.settings, start="all", idle_s=10)
    with closing(following):
        stream.store("a")
        assert stream.name_of(next(following)) == "a"
        stream.store("b")
        assert stream.name_of(next(following)) == "b"


def test_a_follower_of_one_function_gets_its_results_only(stream: Stream) -> None:
    """The others are skipped, and count as read for a group."""
    stream.store("a", "b", function="thumb")
    stream.store("c", function="other")
    assert stream.names(function="thumb") == ["a", "b"]
    assert stream.names(function="other", group="g") == ["c"]
    assert stream.pending("g") == 0


def test_a_follower_is_told_how_many_it_missed(stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    """With a group and without: the exact number of entries trimmed while it was away."""
    stream.store("a", "b")
    assert stream.names(group="g") == ["a", "b"]
    at = list(stream.follow())[-1].id
    stream.store(*"cdefghij")
    for options in ({"start": at}, {"group": "g"}):
        caplog.clear()
        found = list(stream.follow(**options))
        assert [(each.number, each.missed) for each in found] == [(6, 3), (7, 0), (8, 0), (9, 0), (10, 0)]
        assert "3 results were trimmed before they were read" in caplog.text


def test_a_group_that_is_made_late_has_missed_nothing(stream: Stream) -> None:
    """Entries from before its creation do not count as missed, later ones do."""
    stream.store(*"abcdefgh")
    assert [found.missed for found in stream.follow(group="late")] == [0] * 5
    stream.store(*"ijklmno")
    assert [found.missed for found in stream.follow(group="late")] == [2, 0, 0, 0, 0]


def test_an_entry_is_acknowledged_when_the_next_one_is_taken(stream: Stream) -> None:
    """What a stopped follower had not acknowledged is delivered again, first, and nothing comes before it."""
    stream.store("a", "b", "c")
    following = stream.follow(group="g")
    assert [stream.name_of(found) for found in islice(following, 2)] == ["a", "b"]
    assert stream.pending("g") == 2
    following.close()
    stream.store("d")
    assert stream.names(group="g") == ["b", "c", "d"]
    assert stream.names(group="g") == []
    assert stream.pending("g") == 0


def test_consumers_of_a_group_share_the_results(stream: Stream) -> None:
    """Each result goes to one consumer; the others take over the entries of one that is gone."""
    stream.store("a", "b", "c")
    gone = stream.follow(group="g", consumer="one")
    assert stream.name_of(next(gone)) == "a"
    gone.close()
    stream.store("d")
    assert stream.names(group="g", consumer="two") == ["d"]
    left = follow_stream(stream.settings, group="g", consumer="two", idle_s=0.0, abandoned_s=0.001)
    wait_until(lambda: idle_ms(stream, "one") > 1, "the first consumer has been away for long enough")
    assert [stream.name_of(found) for found in left] == ["a", "b", "c"]
    assert stream.pending("g") == 0


def idle_ms(stream: Stream, consumer: str) -> int:
    """How long a consumer of the group has been idle."""
    return next(
        int(each["idle"]) for each in stream.redis.xinfo_consumers(stream.name, "g") if each["name"] == consumer
    )


@pytest.mark.parametrize("heir", ["one", "two"])
def test_what_was_trimmed_in_somebodys_hands_is_counted(stream: Stream, heir: str) -> None:
    """Redis remembers that it was delivered, but not its fields."""
    stream.store("a", "b", "c")
    gone = stream.follow(group="g", consumer="one")
    next(gone)
    gone.close()
    stream.store(*"defgh")
    wait_until(lambda: idle_ms(stream, "one") > 1, "the first consumer has been away for long enough")
    found = list(follow_stream(stream.settings, group="g", consumer=heir, idle_s=0.0, abandoned_s=0.001))
    assert [stream.name_of(each) for each in found] == list("defgh")
    assert [each.missed for each in found] == [3, 0, 0, 0, 0]
    assert stream.pending("g") == 0


@pytest.mark.parametrize(
    ("heir", "command", "missed"), [("one", b"XREADGROUP", 3), ("one", b"XACK", 3), ("two", b"XAUTOCLAIM", None)]
)
def test_what_was_trimmed_is_counted_though_an_answer_is_lost(
    heir: str, command: bytes, missed: int | None, stream: Stream, redis_server: Service
) -> None:
    """Redis reports it once, when it forgets it. If that answer is lost, the number is unknown, and not 0."""
    stream.store("a", "b", "c")
    gone = stream.follow(group="g", consumer="one")
    next(gone)
    gone.close()
    stream.store(*"defgh")
    wait_until(lambda: idle_ms(stream, "one") > 1, "the first consumer has been away for long enough")
    with RedisProxy(redis_server.port) as proxy:
        proxy.lose(command)
        settings = stream.settings.model_copy(update={"result_url": proxy.url})
        found = list(follow_stream(settings, group="g", consumer=heir, idle_s=0.0, abandoned_s=0.001))
    assert [stream.name_of(each) for each in found] == list("defgh")
    assert [each.missed for each in found] == [missed, 0, 0, 0, 0]


def test_a_group_that_redis_has_lost_is_made_anew(stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    """If everything is deleted, a follower at its place continues with all later entries."""
    stream.store("a")
    following = stream.follow(group="g", idle_s=10.0)
    assert stream.name_of(next(following)) == "a"
    stream.redis.delete(stream.name, counter_key(stream.name))
    stream.store("b")
    assert stream.name_of(next(following)) == "b"
    following.close()
    assert "the group g was gone from Redis" in caplog.text


def test_a_follower_whose_stream_is_gone_waits_for_a_new_one(stream: Stream) -> None:
    """With a group and without: a missing stream is not an error, and the next stream's first result is not missed."""
    for options in ({}, {"group": "g"}):
        stream.store("a")
        with closing(stream.follow(**options)) as following:
            assert stream.name_of(next(following)) == "a"
            stream.redis.delete(stream.name, counter_key(stream.name))
            assert list(following) == []
        with closing(stream.follow(**options)) as following:
            stream.redis.delete(stream.app.backend.get_key_for_task(stream.id("a")))
            stream.store("a")
            assert [(found.number, found.missed) for found in following] == [(1, 0)]
        stream.redis.delete(stream.name, counter_key(stream.name), stream.app.backend.get_key_for_task(stream.id("a")))


def test_what_somebody_else_put_there_is_passed_over(stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    """A foreign entry does not stop a follower, and is logged."""
    stream.store("a")
    stream.redis.xadd(stream.name, {"what": "else"}, id="9999999999999-2")
    assert stream.names(group="g") == ["a"]
    assert "entry 9999999999999-2 of the results stream was not written by NanoGrid" in caplog.text


def test_redis_that_is_away_at_the_beginning_is_an_error(redis_server: Service) -> None:
    """A wrong address is reported, not waited for."""
    with pytest.raises(redis.ConnectionError):
        next(follow(Settings(result_url="redis://127.0.0.1:9/0")))


@pytest.mark.parametrize("options", ["", "?protocol=2", "?protocol=3", "?legacy_responses=False"])
@pytest.mark.parametrize("group", [None, "g"])
def test_every_shape_that_an_answer_may_have(options: str, group: str | None, stream: Stream) -> None:
    """The result URL selects Redis' protocol, and redis-py the form of its answers: all of them are parsed."""
    settings = stream.settings.model_copy(update={"result_url": stream.settings.result_url + options})
    with closing(Client(settings).app) as app, closing(follow(settings, group=group, start="all", idle_s=5.0)) as found:
        for name in "ab":
            app.backend.mark_as_done(stream.id(name), not_run(stream.id(name), "f", name), request=stream.context())
        assert [stream.name_of(next(found)) for _ in "ab"] == ["a", "b"]
        threading.Timer(0.2, stream.store, "c").start()  # for which it waits
        assert stream.name_of(next(found)) == "c"
        found.close()
        stream.store(*"defghi")  # the unacknowledged entry is trimmed
        left = list(follow(settings, group=group, consumer=None, start="all", idle_s=0.0))
        assert [stream.name_of(each) for each in left] == list("efghi")
        if group:
            assert [each.missed for each in left] == [2, 0, 0, 0, 0]
            taken = follow_stream(settings, group=group, consumer="one", idle_s=0.0, abandoned_s=0.001)
            assert list(taken) == []
        assert Client(settings).wait(stream.id("a"), 5).stderr == "a\n"
        app.backend.client.close()


def test_results_read_back_as_they_were_told(stream: Stream) -> None:
    """Any text and any JSON value pass through Redis unchanged."""
    stream.store("a", stdout="\x00ü\n\u2028", value={"ü": [1.5, None, "\n"]}, outcome=Outcome.SUCCEEDED)
    (found,) = stream.follow()
    stored: ExecutionResult = stream.client.result(stream.id("a"))
    assert found.result.model_copy(update={"phases": stored.phases}) == stored
