"""The tuner's records in a real Redis: shared, exact, and never in the way of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis

from nanogrid.connections.result_redis import connect
from nanogrid.settings import Settings
from nanogrid.telemetry.events import RunEvent
from nanogrid.tuner.learner import Learner
from nanogrid.tuner.sizes import MEASURED
from nanogrid.tuner.store import READ_BY_RUNS, SampleBatch, TunerStore, decision_for, key_of
from nanogrid.wire.tuner_mode import Mode
from tests.support.services import Service, redis_service, running, wait_until

WRITERS = 4
EACH = 50


def run(function_id: str = "f", peak_mb: float = 30, limit_mb: int = 512, requested_mb: int = 512) -> RunEvent:
    """A run that succeeded."""
    peak = int(peak_mb * 2**20)
    return RunEvent(
        function_id, "code", time.time(), "SUCCEEDED", 10.0, 5.0, peak, limit_mb, requested_mb, killed_for_memory=False
    )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A Redis for this test alone."""
    with running(redis_service(tmp_path)) as here:
        yield here


@pytest.fixture
def settings(service: Service) -> Settings:
    return Settings(result_url=f"redis://127.0.0.1:{service.port}/0")


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with closing(connect(settings, retries=1)) as made:
        yield made


@pytest.fixture
def tuning(settings: Settings, client: redis.Redis) -> TunerStore:
    return TunerStore(settings, client)


def runs_of(tuning: TunerStore, function_id: str = "f") -> int:
    return tuning.load([function_id])[0].record.runs


def test_workers_that_learn_at_the_same_time_lose_no_run_and_count_none_twice(settings: Settings) -> None:
    ready = threading.Barrier(WRITERS)

    def write(tuning: TunerStore) -> None:
        ready.wait()
        for number in range(EACH):
            tuning.learn(SampleBatch.of([run("f"), run(f"other-{number}")]))

    with ExitStack() as clients:
        tunings = [
            TunerStore(settings, clients.enter_context(closing(connect(settings, retries=1)))) for _ in range(WRITERS)
        ]
        threads = [threading.Thread(target=write, args=(tuning,)) for tuning in tunings]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert runs_of(tunings[0]) == WRITERS * EACH
        assert {known.record.runs for known in tunings[0].all() if known.function_id != "f"} == {WRITERS}


def test_a_batch_whose_answer_was_lost_is_not_learned_twice(tuning: TunerStore) -> None:
    batch = SampleBatch.of([run(), run()])
    again = SampleBatch(dict(batch.runs), batch.token)
    tuning.learn(batch)
    assert batch.runs == {}
    tuning.learn(again)
    assert again.runs == {}
    assert runs_of(tuning) == 2


def test_runs_wait_for_a_redis_that_is_away(
    service: Service, settings: Settings, tuning: TunerStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with closing(connect(settings, retries=0)) as own:
        learner = Learner(lambda: TunerStore(settings, own))
        learner.start()
        try:
            learner([run()])
            wait_until(lambda: runs_of(tuning) == 1, "the first run is learned")
            service.kill()
            learner([run(), run()])
            wait_until(lambda: "cannot learn now" in caplog.text, "the learner noticed")
            learner([run()])
            service.start()
            wait_until(lambda: runs_of(tuning) == 4, "all runs are learned")
            wait_until(lambda: "learns again" in caplog.text, "the learner says so")
        finally:
            learner.stop(10)
    assert caplog.text.count("cannot learn now") == 1


def test_a_learner_that_ends_writes_what_waits(settings: Settings, tuning: TunerStore) -> None:
    with closing(connect(settings, retries=0)) as own:
        learner = Learner(lambda: TunerStore(settings, own))
        learner([run() for _ in range(1200)])  # more than one batch
        learner.start()
        learner.stop(60)
    assert runs_of(tuning) == 1200


def test_a_learner_that_ends_without_redis_says_what_is_lost(
    service: Service, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    service.kill()
    with closing(connect(settings, retries=0)) as own:
        learner = Learner(lambda: TunerStore(settings, own))
        learner.start()
        learner([run(), run(), run()])
        wait_until(lambda: "cannot learn now" in caplog.text, "the learner noticed")
        learner.stop(30)
    assert "has not learned from 3 runs" in caplog.text


def test_advice_comes_out_as_it_was_decided(tuning: TunerStore, client: redis.Redis, settings: Settings) -> None:
    tuning.learn(SampleBatch.of([run() for _ in range(20)]))
    applies = settings.model_copy(update={"tuner_mode": Mode.APPLY})
    read = client.hmget(key_of("f"), list(READ_BY_RUNS))
    found = decision_for("f", read, applies)  # type: ignore[arg-type]  # redis-py's stubs allow for its other clients
    assert found.advice == tuning.load(["f"])[0].advice
    assert found.limit_mb(512, "code") == 48
    assert found.limit_mb(40, "code") == 40  # never more than requested
    assert found.limit_mb(1024, "code") == 48
    assert found.limit_mb(512, "other code") == 512
    assert found.recommended_mb() == 48
    assert found.tip(1024) is None  # its numbers apply to 512


@pytest.mark.parametrize(
    ("deployment", "own", "function_id", "expected"),
    [
        (Mode.RECOMMEND, None, "f", Mode.RECOMMEND),
        (Mode.RECOMMEND, Mode.APPLY, "f", Mode.APPLY),
        (Mode.APPLY, Mode.OFF, "f", Mode.OFF),
        (Mode.OFF, Mode.RECOMMEND, "f", Mode.RECOMMEND),
        (Mode.APPLY, Mode.APPLY, f"{MEASURED}f", Mode.OFF),
    ],
)
def test_a_functions_own_mode_counts_before_the_deployments(
    tuning: TunerStore,
    client: redis.Redis,
    settings: Settings,
    deployment: Mode,
    own: Mode | None,
    function_id: str,
    expected: Mode,
) -> None:
    tuning.set_mode(function_id, own)
    read = client.hmget(key_of(function_id), list(READ_BY_RUNS))
    changed = settings.model_copy(update={"tuner_mode": deployment})
    assert decision_for(function_id, read, changed).mode is expected  # type: ignore[arg-type]


def test_a_reset_forgets_what_was_learned_and_keeps_the_mode(tuning: TunerStore) -> None:
    tuning.set_mode("f", Mode.APPLY)
    tuning.learn(SampleBatch.of([run()]))
    assert tuning.reset("f")
    (known,) = tuning.load(["f"])
    assert (known.record.runs, known.advice, known.mode) == (0, None, Mode.APPLY)
    assert not tuning.reset("f")
    tuning.learn(SampleBatch.of([run()]))
    assert runs_of(tuning) == 1


def test_a_record_that_cannot_be_read_is_learned_anew(
    tuning: TunerStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.hset(key_of("f"), mapping={"record": "{broken", "advice": "[]", "version": "1", "mode": "sideways"})
    tuning.learn(SampleBatch.of([run()]))
    (known,) = tuning.load(["f"])
    assert (known.record.runs, known.mode) == (1, None)
    assert known.advice is not None
    assert "the tuner's record of f cannot be parsed" in caplog.text


def test_a_record_is_small_however_many_runs_it_saw(tuning: TunerStore, client: redis.Redis) -> None:
    tuning.learn(SampleBatch.of([run(peak_mb=8 + number % 900) for number in range(2000)]))
    assert client.hstrlen(key_of("f"), "record") < 6000
    assert client.hstrlen(key_of("f"), "advice") < 1000
