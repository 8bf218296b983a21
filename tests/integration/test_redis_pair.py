"""Redis as a replicated pair: what a real failover that loses writes costs, and that everybody is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.app.task import Context

from nanogrid.celery import NanoGrid, make_app
from nanogrid.cli.checks import Check, CheckHealth, run_checks
from nanogrid.client import Client, follow
from nanogrid.errors import ResultUnavailableError
from nanogrid.result import Outcome, not_run
from nanogrid.results.claims import Claims
from nanogrid.settings import Settings
from nanogrid.wire.names import EXECUTE
from tests.integration.test_result_backend import begin
from tests.support.redis_pair import RedisPair, redis_pair
from tests.support.services import wait_until


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[RedisPair]:
    """A primary and its replica."""
    with redis_pair(tmp_path) as running:
        yield running


@pytest.fixture
def waiting(pair: RedisPair) -> Settings:
    """Settings that want a result on the replica, too."""
    return Settings(result_url=pair.url, result_replicas=1, result_replicas_wait_ms=100)


@contextmanager
def worker_app(settings: Settings) -> Iterator[NanoGrid]:
    """An app that stores results as a worker does."""
    with make_app(settings) as app:
        yield app
        app.backend.client.close()


def store(settings: Settings, *names: str) -> None:
    """Store a result for each name, and return when a worker would delete the messages."""
    with worker_app(settings) as app:
        for name in names:
            context = Context(task=EXECUTE, args=({"functionId": "f", "runtime": "python"},), hostname="w1", retries=0)
            app.backend.mark_as_done(name, not_run(name, "f", name), request=context)


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[threading.Thread]:
    """Do something beside the `with` block; at its end it must be over."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as failure:
            failures.append(failure)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()
    assert failures == []


@pytest.mark.parametrize("group", [None, "g"])
def test_numbers_that_fall_are_told(pair: RedisPair, group: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A follower that has seen more than the new primary knows is not told that it missed nothing."""
    settings = Settings(result_url=pair.url)
    store(settings, "a", "b", "c")
    with closing(follow(settings, group=group, start="all", idle_s=20.0)) as following:
        assert [next(following).number for _ in "abc"] == [1, 2, 3]
        pair.await_replicated()
        pair.sever()
        store(settings, "lost", "lost too")
        assert [next(following).number for _ in range(2)] == [4, 5]
        pair.fail_over()
        store(settings, "d", "e")
        seen = [next(following)]
        while seen[-1].result.request_id != "e":
            seen.append(next(following))
    assert [(each.number, each.result.request_id) for each in seen[-2:]] == [(4, "d"), (5, "e")]
    assert [each.missed for each in seen] == [None] + [0] * (len(seen) - 1)
    assert "Redis has lost results" in caplog.text
    assert len(seen) == 2 or group, "what was not acknowledged on the new primary comes again, within a group"


def test_a_follower_that_comes_back_after_a_failover_is_told(pair: RedisPair) -> None:
    """It names the entry up to which it has read, and Redis has nothing that late any more."""
    settings = Settings(result_url=pair.url)
    store(settings, "a")
    pair.await_replicated()
    pair.sever()
    store(settings, "lost")
    at = list(follow(settings, start="all", idle_s=0.0))[-1].id
    pair.fail_over()
    assert list(follow(settings, start=at, idle_s=0.0)) == []
    with closing(follow(settings, start=at, idle_s=20.0)) as following, meanwhile(lambda: store(settings, "b")):
        found = next(following)
    assert (found.number, found.result.request_id, found.missed) == (2, "b", None)


def test_a_worker_says_that_the_numbers_fell(pair: RedisPair, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever stores results sees it first, also where no follower does."""
    settings = Settings(result_url=pair.url)
    with worker_app(settings) as app:

        def end(name: str) -> None:
            app.backend.mark_as_done(name, not_run(name, "f", name), request=Context(task=EXECUTE))

        end("a")
        pair.await_replicated()
        pair.sever()
        end("lost")
        pair.fail_over()
        end("b")
    assert "the number of the last result fell from 2 to 2" in caplog.text


def test_a_failover_loses_the_last_results_by_default(pair: RedisPair) -> None:
    """What the documents say of a pair without NANOGRID_RESULT_REPLICAS."""
    settings = Settings(result_url=pair.url)
    store(settings, "kept")
    pair.await_replicated()
    pair.sever()
    store(settings, "lost")
    pair.fail_over()
    client = Client(settings)
    assert client.result("kept").outcome is Outcome.NOT_RUN
    with pytest.raises(ResultUnavailableError):
        client.result("lost")


def test_a_message_is_kept_until_the_replica_has_the_result(
    pair: RedisPair, waiting: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away nothing is done with, and nobody is told; one line says so, and one that it is over."""
    caplog.set_level(logging.INFO)
    pair.sever()
    heard: Any = pair.on(pair.primary).pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    with closing(heard):
        heard.subscribe("nanogrid:celery-task-meta-a")
        heard.get_message(timeout=5)
        with meanwhile(lambda: store(waiting, "a")) as storing:
            wait_until(lambda: "NANOGRID_RESULT_REPLICAS" in caplog.text, "it is said")
            assert storing.is_alive()
            assert heard.get_message(timeout=0.3) is None
            pair.mend()
        message = heard.get_message(timeout=5)
    assert message is not None
    assert "SUCCESS" in message["data"]
    assert caplog.text.count("NANOGRID_RESULT_REPLICAS") == 1
    assert "replicas have" in caplog.text
    assert pair.on(pair.replica).exists("nanogrid:celery-task-meta-a")


def test_a_result_that_a_failover_takes_away_is_stored_again(pair: RedisPair, waiting: Settings) -> None:
    """The primary dies with a result that its replica never got: the worker still has it, and it has one entry."""
    store(waiting, "a")
    pair.sever()
    with meanwhile(lambda: store(waiting, "b")) as storing:
        wait_until(lambda: pair.on(pair.primary).exists("nanogrid:celery-task-meta-b"), "the primary has it")
        assert storing.is_alive()
        pair.fail_over(add_replica=True)
    assert Client(waiting).result("b").stderr == "b\n"
    entries = [(found.number, found.result.request_id) for found in follow(waiting, start="all", idle_s=0.0)]
    assert entries == [(1, "a"), (2, "b")]


def test_a_duplicate_is_not_done_with_before_the_replica_has_the_first_end(
    pair: RedisPair, waiting: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The first worker died while it waited. Its message comes again, finds the result, and must not be deleted for that."""
    pair.sever()
    store(Settings(result_url=pair.url), "a")
    with meanwhile(lambda: store(waiting, "a")) as storing:
        wait_until(lambda: "NANOGRID_RESULT_REPLICAS" in caplog.text, "it is said")
        assert storing.is_alive()
        pair.mend()
    assert pair.on(pair.replica).exists("nanogrid:celery-task-meta-a")
    assert [found.number for found in follow(waiting, start="all", idle_s=0.0)] == [1]


def test_a_redis_that_takes_no_writes_loses_no_result(pair: RedisPair) -> None:
    """`min-replicas-to-write` makes a primary without its replica refuse: the end is stored when it takes writes again."""
    settings = Settings(result_url=pair.url)
    pair.on(pair.primary).config_set("min-replicas-to-write", 1)
    pair.sever()
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        pair.on(pair.primary).set("test:any", 1)
    taken = []

    def take() -> None:
        with worker_app(settings) as app:
            taken.append(begin(app, "b"))

    with meanwhile(lambda: store(settings, "a")), meanwhile(take):
        pair.mend()
    assert Client(settings).result("a").outcome is Outcome.NOT_RUN
    assert taken == [(None, True, [None])]


def test_a_primary_that_became_a_replica_is_left(pair: RedisPair) -> None:
    """The old primary answers on the old connections, and takes no writes: worker, claims and followers find the new one."""
    settings = Settings(result_url=pair.url)
    with ExitStack() as stack:
        app = stack.enter_context(worker_app(settings))
        claims = Claims(settings)
        following = {
            group: stack.enter_context(closing(follow(settings, group=group, start="all", idle_s=20.0)))
            for group in (None, "g")
        }
        app.backend.mark_as_done("a", not_run("a", "f", "a"), request=Context(task=EXECUTE))
        assert claims.take("a", "token")
        assert [next(each).result.request_id for each in following.values()] == ["a", "a"]
        pair.await_replicated()
        pair.fail_over(keep_old=True)
        app.backend.mark_as_done("b", not_run("b", "f", "b"), request=Context(task=EXECUTE))
        assert begin(app, "c")[1]
        assert claims.take("b", "token")
        for each in following.values():
            assert next(each).result.request_id == "b"
    assert pair.on(pair.primary).exists("nanogrid:celery-task-meta-b", "nanogrid:claim:b", "nanogrid:claim:c") == 3


def test_a_claim_that_a_failover_took_away_is_taken_again(pair: RedisPair, caplog: pytest.LogCaptureFixture) -> None:
    """Within a third of its life; that a duplicate may have run in the meantime is said."""
    claims = Claims(Settings(result_url=pair.url, claim_ttl_s=3))
    pair.sever()
    assert claims.take("a", "token")
    with claims.hold("a", "token"):
        pair.fail_over()
        wait_until(lambda: pair.on(pair.primary).get("nanogrid:claim:a") == "token", "the claim is there again")
        wait_until(lambda: "request a: the claim was gone from Redis" in caplog.text, "it is said")


def checks(settings: Settings, name: str) -> list[Check]:
    return [check for check in run_checks(settings) if check.name == name]


def test_doctor_shows_what_a_failover_would_cost(pair: RedisPair, waiting: Settings, tmp_path: Path) -> None:
    """Replicas that are not waited for, that are waited for, that are missing; and a URL that leads to a replica."""
    elsewhere: dict[str, Any] = {"monitor_url": pair.url.replace("/0", "/1"), "data_dir": tmp_path}
    (unasked,) = checks(Settings(result_url=pair.url, **elsewhere), "redis replicas")
    assert unasked.health is CheckHealth.WARNING
    assert "1 replica answers, and no result waits for it" in unasked.found
    assert "NANOGRID_RESULT_REPLICAS=1" in unasked.remedy
    asked = waiting.model_copy(update=elsewhere)
    (good,) = checks(asked, "redis replicas")
    assert (good.health, good.found) == (CheckHealth.OK, "1 replica answers; each result waits until 1 has it")
    replica_url = f"redis://127.0.0.1:{pair.replica.port}/0"
    (wrong,) = checks(asked.model_copy(update={"result_url": replica_url}), "redis replicas")
    assert wrong.health is CheckHealth.BROKEN
    assert "is itself a replica" in wrong.found
    pair.sever()
    (missing,) = checks(asked, "redis replicas")
    assert missing.health is CheckHealth.BROKEN
    assert "0 replicas answer, and each result waits until 1 has it" in missing.found


def test_doctor_says_nothing_of_replicas_where_there_are_none(redis_url: str, tmp_path: Path) -> None:
    """A single Redis needs no line about them."""
    assert checks(Settings(result_url=redis_url, data_dir=tmp_path), "redis replicas") == []
