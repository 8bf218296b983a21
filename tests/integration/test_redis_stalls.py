"""Redis carries a command out and its answer is lost: the client sends the command again, and recognizes its own success."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from nanogrid.celery import NanoGrid
from nanogrid.client import follow
from nanogrid.connections.result_redis import connect
from nanogrid.result import not_run
from nanogrid.results.claims import Claims
from nanogrid.results.stream.append import counter_key
from nanogrid.settings import Settings
from nanogrid.telemetry.events import RequestEvent
from nanogrid.tuner.store import SampleBatch, TunerStore
from tests.integration.test_result_backend import begin, context, worker_app
from tests.integration.test_tuning import run
from tests.support.redis_proxy import RedisProxy


@pytest.fixture
def settings(redis_proxy: RedisProxy, redis_url: str, unique: str) -> Iterator[Settings]:
    """Settings that lead to the proxy, with a stream of this test's own."""
    name = f"nanogrid:{unique}"
    yield Settings(result_url=redis_proxy.url, stream_name=name)
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.delete(name, counter_key(name))


class Told:
    """What is reported about a request: on its channel, in the stream, and to the main process."""

    def __init__(self, settings: Settings, redis_url: str, request_id: str) -> None:
        self._settings = settings.model_copy(update={"result_url": redis_url})
        self._client = redis.Redis.from_url(redis_url, decode_responses=True)
        self._heard: Any = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._heard.subscribe(f"nanogrid:celery-task-meta-{request_id}")
        self._heard.get_message(timeout=5)

    def ends(self) -> list[str]:
        """The ends among the messages."""
        return [message for message in self.messages() if "SUCCESS" in message]

    def messages(self) -> list[str]:
        """What was published since the last call."""
        found = []
        while message := self._heard.get_message(timeout=0.2):
            found.append(message["data"])
        return found

    def entries(self) -> list[str]:
        """The stream's entries: the reasons in their results."""
        return [found.result.stderr for found in follow(self._settings, start="all", idle_s=0.0)]

    def close(self) -> None:
        """Close both connections."""
        self._heard.close()
        self._client.close()


@pytest.fixture
def told(settings: Settings, redis_url: str, unique: str) -> Iterator[Told]:
    with closing(Told(settings, redis_url, unique)) as here:
        yield here


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[RequestEvent]:
    """The events that the backend emits to the main process."""
    events: list[RequestEvent] = []
    monkeypatch.setattr("nanogrid.results.backend.emit", events.append)
    return events


def store(app: NanoGrid, request_id: str, reason: str) -> None:
    """Store an end as a worker's child does."""
    app.backend.mark_as_done(request_id, not_run(request_id, "f", reason), request=context())


@pytest.fixture
def app(settings: Settings, unique: str, ended: list[RequestEvent]) -> Iterator[NanoGrid]:
    """A worker's app whose scripts Redis has cached, so that the next command is the one that counts."""
    with worker_app(settings) as here:
        store(here, f"{unique}-first", "first")
        store(here, f"{unique}-first", "first")
        begin(here, f"{unique}-second")
        here.backend._clock = None
        del ended[:]
        yield here


def take(app: NanoGrid, request_id: str, token: str = "token") -> bool:
    """Whether a claim was free, and is taken now."""
    return begin(app, request_id, token)[1]


def test_a_claim_whose_answer_was_lost_is_ones_own(
    redis_proxy: RedisProxy, settings: Settings, app: NanoGrid, told: Told, unique: str
) -> None:
    """Nobody waits for a claim that it holds itself, and that the request has started is heard once."""
    redis_proxy.lose(unique.encode())
    assert take(app, unique)
    assert len(told.messages()) == 1
    assert not take(app, unique, "another")
    with closing(connect(settings)) as client:
        Claims(settings, client).release(unique, "token")
    assert take(app, unique, "another")


def test_a_claim_that_is_taken_again_lasts_as_long_as_a_new_one(settings: Settings, app: NanoGrid, unique: str) -> None:
    """The answer may have been lost long ago."""
    assert take(app, unique)
    with closing(connect(settings)) as client:
        client.pexpire(f"nanogrid:claim:{unique}", 1000)
        assert take(app, unique)
        assert int(client.pttl(f"nanogrid:claim:{unique}")) > 1000


def end_of(request_id: str) -> re.Pattern[bytes]:
    """A command about a request's end."""
    return re.compile(rb"task-meta-%s\r\n" % request_id.encode())


@pytest.mark.parametrize("lost", [1, 2])
def test_an_end_whose_answer_was_lost_is_told_once(
    lost: int, redis_proxy: RedisProxy, app: NanoGrid, told: Told, unique: str, ended: list[RequestEvent]
) -> None:
    """Both steps of storing: whichever answer is lost, there is one message, one entry and one count."""
    redis_proxy.at(lost, end_of(unique), None)
    store(app, unique, "it is refused")
    assert len(told.ends()) == 1
    assert told.entries() == ["first\n", "it is refused\n"]
    assert len(ended) == 1


class KilledError(BaseException):
    """The child was killed."""


def test_an_end_in_one_step_whose_answer_was_lost_is_told_once(
    redis_proxy: RedisProxy, app: NanoGrid, told: Told, unique: str, ended: list[RequestEvent]
) -> None:
    """After a short run one step stores and publishes. The command is repeated, and recognizes its own end and its time."""
    assert take(app, unique)
    redis_proxy.at(1, end_of(unique), None)
    store(app, unique, "it is refused")
    (message,) = told.ends()
    assert told.entries() == ["first\n", "it is refused\n"]
    (event,) = ended
    assert json.loads(message)["result"]["phases"]["store"] == event.phases["store"]
    store(app, unique, "it is refused")
    assert (told.ends(), len(ended)) == ([], 1)


@pytest.mark.parametrize("second", ["it is refused", "the soft time limit came in between"])
def test_an_end_that_was_stored_and_not_told_is_told_by_whoever_finds_it(
    second: str,
    app: NanoGrid,
    told: Told,
    unique: str,
    ended: list[RequestEvent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child is killed between the two steps: the next delivery publishes the stored end, once, whatever its own result is."""

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(app.backend, "_complete_end", killed)
        with pytest.raises(KilledError):
            store(app, unique, "it is refused")
    assert (told.ends(), len(ended)) == ([], 0)
    store(app, unique, second)
    (message,) = told.ends()
    assert "it is refused" in message
    assert '"store": null' not in message
    assert len(ended) == 1
    store(app, unique, second)
    assert (told.ends(), len(ended)) == ([], 1)
    assert told.entries() == ["first\n", "it is refused\n"]


def test_a_state_whose_answer_was_lost_is_told_once(
    redis_proxy: RedisProxy, app: NanoGrid, told: Told, unique: str
) -> None:
    """STARTED is no end, and is heard once all the same."""
    app.backend.store_result(f"{unique}-first", {}, "STARTED", request=context())
    redis_proxy.at(1, end_of(unique), None)
    app.backend.store_result(unique, {"pid": 1}, "STARTED", request=context())
    assert len(told.messages()) == 1


def test_a_sample_batch_whose_answer_was_lost_counts_once(
    redis_proxy: RedisProxy, settings: Settings, unique: str
) -> None:
    """The tuner's record."""
    with closing(connect(settings)) as client:
        tuning = TunerStore(settings, client)
        tuning.learn(SampleBatch.of([run(unique)]))
        redis_proxy.at(2, re.compile(unique.encode()), None)  # the first one reads
        tuning.learn(SampleBatch.of([run(unique)]))
        (known,) = tuning.load([unique])
        assert known.record.runs == 2


def test_a_reset_whose_answer_was_lost_says_that_something_was_learned(
    redis_proxy: RedisProxy, settings: Settings, unique: str
) -> None:
    """And a second one that nothing was."""
    with closing(connect(settings)) as client:
        tuning = TunerStore(settings, client)
        assert not tuning.reset(unique)
        tuning.learn(SampleBatch.of([run(unique)]))
        redis_proxy.at(1, re.compile(rb"EVALSHA.*%s" % unique.encode(), re.DOTALL), None)
        assert tuning.reset(unique)
        assert not tuning.reset(unique)
