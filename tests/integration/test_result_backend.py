"""The result backend on a real Redis: the first end of a request wins, whatever is stored at the same moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from celery.app.task import Context
from celery.exceptions import Retry

from nanogrid.celery import NanoGrid, make_app
from nanogrid.client import Client
from nanogrid.result import not_run
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


def store_state(app: NanoGrid, request_id: str, state: str) -> None:
    """Store a state as Celery's worker does."""
    if state == "RETRY":
        app.backend.mark_as_retry(request_id, Retry("S3 does not answer"), request=context())
    else:
        app.backend.store_result(request_id, {"pid": 1, "hostname": "w2"}, state, request=context())


@pytest.mark.parametrize("state", ["STARTED", "RETRY", "PROGRESS"])
def test_no_state_erases_an_end_that_was_stored_at_the_same_moment(
    state: str, redis_proxy: RedisProxy, redis_url: str, unique: str
) -> None:
    """A duplicate's state reaches Redis right after the first run's end: the end stays, and the state is not published."""
    told = not_run(unique, "f", "the first run's end")
    with (
        worker_app(Settings(result_url=redis_url)) as first,
        worker_app(Settings(result_url=redis_proxy.url)) as second,
    ):
        redis_proxy.before(state.encode(), lambda: first.backend.mark_as_done(unique, told, request=context()))
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
    assert [state in message for message in messages] == [False]


def test_a_state_is_stored_and_heard_where_there_is_no_end(redis_url: str, unique: str) -> None:
    """STARTED, then RETRY, then STARTED again: each one replaces the one before, and expires."""
    with worker_app(Settings(result_url=redis_url, result_expires_s=60)) as app:
        key = app.backend.get_key_for_task(unique)
        with closing(app.backend.client.pubsub(ignore_subscribe_messages=True)) as heard:
            heard.subscribe(key)
            heard.get_message(timeout=5)
            for state in ("STARTED", "RETRY", "STARTED"):
                store_state(app, unique, state)
                assert Client(Settings(result_url=redis_url)).state(unique) == state
                message = heard.get_message(timeout=5)
                assert message is not None
                assert state in message["data"].decode()
        assert 0 < int(app.backend.client.ttl(key)) <= 60
