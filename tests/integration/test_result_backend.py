"""The result backend on a real Redis: the first end of a request wins, whatever is stored at the same moment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime

import pytest
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.exceptions import Retry

from nanogrid.celery import NanoGrid, make_app
from nanogrid.client import Client
from nanogrid.result import Phases, not_run
from nanogrid.results.backend import CLOCK_S, Begun
from nanogrid.settings import Settings
from nanogrid.wire.names import EXECUTE
from tests.support.redis_proxy import RedisProxy


@contextmanager
def worker_app(settings: Settings) -> Iterator[NanoGrid]:
    """An app that stores results as a worker does."""
    with make_app(settings) as app:
        yield app
        app.backend.client.close()


def context() -> Context:
    """Celery's context of a running request."""
    return Context(task=EXECUTE, args=({"functionId": "f", "runtime": "python"},), hostname="w1", retries=0)


def begin(app: NanoGrid, request_id: str, token: str = "token") -> Begun:
    """Begin a request as a worker's child does: take its claim, and store that it has started."""
    claim = (f"nanogrid:claim:{request_id}", token, 15_000)
    answer: Begun = app.backend.begin(request_id, context(), claim, ("nanogrid:none", ["x"]))
    return answer


def store_state(app: NanoGrid, request_id: str, state: str) -> None:
    """Store a state as Celery's worker does."""
    if state == "begin":
        begin(app, request_id)
    elif state == "RETRY":
        app.backend.mark_as_retry(request_id, Retry("S3 does not answer"), request=context())
    else:
        app.backend.store_result(request_id, {"pid": 1, "hostname": "w2"}, state, request=context())


STATES = ["STARTED", "RETRY", "PROGRESS", "begin"]
"""`begin`: STARTED as it is stored together with the claim."""


@pytest.mark.parametrize("state", STATES)
def test_no_state_erases_an_end_that_was_stored_at_the_same_moment(
    state: str, redis_proxy: RedisProxy, redis_url: str, unique: str
) -> None:
    """A duplicate's state reaches Redis right after the first run's end: the end stays, and the state is not published."""
    told = not_run(unique, "f", "the first run's end")
    with (
        worker_app(Settings(result_url=redis_url)) as first,
        worker_app(Settings(result_url=redis_proxy.url)) as second,
    ):
        redis_proxy.before(
            b"STARTED" if state == "begin" else state.encode(),
            lambda: first.backend.mark_as_done(unique, told, request=context()),
        )
        with closing(first.backend.client.pubsub(ignore_subscribe_messages=True)) as heard:
            heard.subscribe(first.backend.get_key_for_task(unique))
            heard.get_message(timeout=5)
            store_state(second, unique, state)
            messages = []
            while message := heard.get_message(timeout=0.2):
                messages.append(message["data"].decode())
    client = Client(Settings(result_url=redis_url))
    assert client.state(unique) == "SUCCESS"
    assert client.result(unique).stderr == told.stderr
    assert len(messages) == 1
    assert told.stderr.strip() in messages[0]


def test_a_state_is_stored_and_heard_where_there_is_no_end(redis_url: str, unique: str) -> None:
    """STARTED, then RETRY, then STARTED again: each one replaces the one before, and expires."""
    with worker_app(Settings(result_url=redis_url, result_expires_s=60)) as app:
        key = app.backend.get_key_for_task(unique)
        with closing(app.backend.client.pubsub(ignore_subscribe_messages=True)) as heard:
            heard.subscribe(key)
            heard.get_message(timeout=5)
            for state in ("begin", "RETRY", "STARTED"):
                store_state(app, unique, state)
                shown = "STARTED" if state == "begin" else state
                assert Client(Settings(result_url=redis_url)).state(unique) == shown
                message = heard.get_message(timeout=5)
                assert message is not None
                assert shown in message["data"].decode()
        assert 0 < int(app.backend.client.ttl(key)) <= 60


def test_only_who_has_the_claim_has_started(redis_url: str, unique: str) -> None:
    """A duplicate neither runs nor says that it does; the end that it waits for is read in the step that asks for the claim."""
    with worker_app(Settings(result_url=redis_url)) as app:
        assert begin(app, unique, "first") == (None, True, [None])
        started = app.backend.get(app.backend.get_key_for_task(unique))
        assert b'"hostname": "w1"' in started
        with closing(app.backend.client.pubsub(ignore_subscribe_messages=True)) as heard:
            heard.subscribe(app.backend.get_key_for_task(unique))
            heard.get_message(timeout=5)
            assert begin(app, unique, "second") == (None, False, [None])
            assert begin(app, unique, "first") == (None, True, [None])
            assert heard.get_message(timeout=0.2) is None
        app.backend.mark_as_done(unique, not_run(unique, "f", "ended"), request=context())
        ended, claimed, _ = begin(app, unique, "second")
        assert (ended, claimed) == (app.backend.get(app.backend.get_key_for_task(unique)), False)


def calls(app: NanoGrid) -> Counter[str]:
    """How often Redis was asked what so far."""
    stats = app.backend.client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): values["calls"] for name, values in stats.items()})


def end(app: NanoGrid, request_id: str) -> tuple[Phases, Counter[str], list[str]]:
    """Store an end. Returns its phases, the scripts that this took, and what was published."""
    with closing(app.backend.client.pubsub(ignore_subscribe_messages=True)) as heard:
        heard.subscribe(app.backend.get_key_for_task(request_id))
        heard.get_message(timeout=5)
        before = calls(app)
        app.backend.mark_as_done(request_id, not_run(request_id, "f", "ended"), request=context())
        asked = calls(app) - before
        published = []
        while message := heard.get_message(timeout=0.1):
            published.append(message["data"].decode())
    result = Client(app.settings).result(request_id)
    assert result is not None
    assert [json.loads(each)["result"] for each in published] == [result.to_wire()]
    return result.phases, asked, published


@pytest.fixture
def app(redis_url: str, unique: str) -> Iterator[NanoGrid]:
    """A worker's app whose scripts Redis has cached."""
    with worker_app(Settings(result_url=redis_url)) as here:
        end(here, f"{unique}-first")
        begin(here, f"{unique}-second")
        yield here


def test_a_request_takes_two_round_trips(app: NanoGrid, unique: str) -> None:
    """One begins, one ends: with the claim, the state, the advice; with the result, its time of storing, its entry, its message."""
    before = calls(app)
    begin(app, unique)
    assert (calls(app) - before)["evalsha"] == 1
    phases, asked, _ = end(app, unique)
    assert asked["evalsha"] == 1
    assert phases.store is not None
    assert 0 < phases.store < 1000


@pytest.mark.parametrize("ran_s", [CLOCK_S + 1, 3600.0])
def test_the_end_of_a_long_run_is_stored_in_two_steps(ran_s: float, app: NanoGrid, unique: str) -> None:
    """Two clocks do not run alike for ever, and one more round trip is nothing beside the run."""
    begin(app, unique)
    at_us, learned = app.backend._clock
    app.backend._clock = at_us - round(ran_s * 1e6), learned - ran_s
    phases, asked, _ = end(app, unique)
    assert asked["evalsha"] == 2
    assert phases.store is not None
    assert 0 < phases.store < 1000


@pytest.mark.parametrize("by_s", [-3600.0, -2.0, 2.0, 3600.0])
def test_a_clock_that_was_set_during_the_run_gives_no_time(by_s: float, app: NanoGrid, unique: str) -> None:
    """The time of storing is measured here then, in two steps."""
    begin(app, unique)
    at_us, learned = app.backend._clock
    app.backend._clock = at_us + round(by_s * 1e6), learned
    phases, asked, _ = end(app, unique)
    assert asked["evalsha"] == 2
    assert phases.store is not None
    assert 0 < phases.store < 1000


def test_a_value_that_looks_like_an_unpublished_end_stays_as_it_is(app: NanoGrid, unique: str) -> None:
    """The time of storing is filled into the result, not into what the function returned."""
    value = {"phases": {"store": None}, "runtime": None}
    begin(app, unique)
    told = not_run(unique, "f", "ended").model_copy(update={"value": value})
    app.backend.mark_as_done(unique, told, request=context())
    stored = Client(app.settings).result(unique)
    assert stored is not None
    assert stored.value == value
    assert stored.phases.store is not None


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "STARTED"])
@pytest.mark.parametrize("placed", [{}, {"group": "g", "parent_id": "p"}])
def test_what_is_stored_is_what_celery_stores(state: str, placed: dict[str, str], redis_url: str) -> None:
    """Celery's own way is slower, and gives the same."""
    request = Context(task=EXECUTE, **placed)
    with worker_app(Settings(result_url=redis_url)) as app:
        ours = app.backend._get_result_meta({"x": 1}, state, "a traceback", request)
        celerys = RedisBackend._get_result_meta(app.backend, {"x": 1}, state, "a traceback", request)
        for meta in (ours, celerys):
            done = meta.pop("date_done")
            assert (done is None) == (state == "STARTED")
            assert done is None or datetime.fromisoformat(done).tzinfo is not None
        assert ours == celerys


def test_a_result_that_is_freed_after_its_connection_opens_no_other(app: NanoGrid, unique: str) -> None:
    """A collection of garbage frees both in any order."""
    consumer = app.backend.result_consumer
    consumer.consume_from(unique)
    consumer._pubsub.close()
    consumer.cancel_for(unique)
    assert consumer._pubsub.connection is None
    assert not any(unique in str(key) for key in consumer.subscribed_to)
