"""The tuner in a whole NanoGrid: it lowers limits, corrects mistakes, and leaves alone what it must not touch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from nanogrid.client import Client
from nanogrid.connections.result_redis import connect
from nanogrid.execution.pool.snapshot import snapshot
from nanogrid.result import ExecutionResult, Outcome
from nanogrid.settings import Settings
from nanogrid.tuner.sizes import MEASURED
from nanogrid.tuner.store import TunerStore, key_of
from nanogrid.wire.tuner_mode import Mode
from tests.support.functions import Functions
from tests.support.services import wait_until
from tests.support.worker import Grid, Worker

WAIT_S = 90.0
MINIMUM: int = Settings.model_fields["tuner_minimum_runs"].default

EATS = "import sys; n = int(sys.stdin.read()); x = bytearray(n << 20); print(len(x) >> 20)"
"""Uses as many MiB as its payload says."""

COPES = """
import subprocess, sys
n = int(sys.stdin.read())
code = subprocess.run([sys.executable, "-c", f"x = bytearray({n} << 20)"]).returncode
print("child", code)
"""
"""Gives the memory to a child, and ends well whatever becomes of that."""


@pytest.fixture(scope="module")
def tuning(grid: Grid) -> Iterator[TunerStore]:
    """The tuner's records."""
    with closing(connect(grid.settings)) as client:
        yield TunerStore(grid.settings, client)


class Runs:
    """Runs one function, one request after the other, and waits until the tuner has learned from each batch."""

    def __init__(self, client: Client, functions: Functions, tuning: TunerStore) -> None:
        self._client, self._functions, self._tuning = client, functions, tuning

    def __call__(
        self, function_id: str, program: str, payloads: list[int], memory_mb: int = 512, *, learned: bool = True
    ) -> list[ExecutionResult]:
        before = self._tuning.load([function_id])[0].record.runs
        results = []
        for payload in payloads:
            request = self._functions.request(
                program, functionId=function_id, payload=payload, memoryMb=memory_mb, timeoutMs=20_000
            )
            results.append(self._client.wait(self._client.submit(request), WAIT_S))
        if learned:
            wait_until(
                lambda: self._tuning.load([function_id])[0].record.runs >= before + len(payloads),
                f"the tuner has learned of {len(payloads)} runs of {function_id}",
            )
        return results


@pytest.fixture
def run(worker: Worker, client: Client, functions: Functions, tuning: TunerStore) -> Runs:
    return Runs(client, functions, tuning)


def test_a_function_that_asks_for_too_much_gets_its_tuned_limit_and_a_larger_run_succeeds_all_the_same(
    run: Runs, tuning: TunerStore, grid: Grid
) -> None:
    tuning.set_mode("thumbs", Mode.APPLY)
    first = run("thumbs", EATS, [30] * MINIMUM)
    assert {result.memory_limit_mb for result in first} == {512}
    assert first[-1].recommended_memory_mb is None
    assert "more are needed" in str(first[-1].optimization_tip)

    (tuned,) = run("thumbs", EATS, [30])
    print(f"after {MINIMUM} runs: {tuned!r}, limit {tuned.memory_limit_mb} MiB; {tuned.optimization_tip}")
    assert tuned.outcome is Outcome.SUCCEEDED
    assert tuned.memory_limit_mb is not None
    assert tuned.peak_memory_bytes is not None
    assert tuned.peak_memory_bytes / 2**20 < tuned.memory_limit_mb <= 64
    assert tuned.recommended_memory_mb == tuned.memory_limit_mb
    assert str(tuned.optimization_tip).startswith(f"lower memoryMb from 512 to {tuned.memory_limit_mb}: ")
    # The container got another limit; it was not replaced.
    assert tuned.start_kind is not None
    assert tuned.start_kind.value == "warm"
    assert tuned.container_id == first[-1].container_id
    held = [one for one in snapshot(grid.settings.data_dir) if one.function_id == "thumbs"]
    assert [one.memory_limit_mb for one in held] == [tuned.memory_limit_mb]

    (large,) = run("thumbs", EATS, [300])
    print(f"a run that needs 300 MiB: {large!r}, limit {large.memory_limit_mb} MiB; {large.optimization_tip}")
    assert large.outcome is Outcome.SUCCEEDED
    assert large.stdout == "300\n"
    assert large.stderr == ""
    assert large.memory_limit_mb == 512
    assert "was too small" in str(large.optimization_tip)

    wait_until(
        lambda: (advice := tuning.load(["thumbs"])[0].advice) and (advice.recommended_mb or 0) > 300,
        "the second run is learned of, too",
    )
    (after,) = run("thumbs", EATS, [30])
    print(f"the run after it: {after!r}, limit {after.memory_limit_mb} MiB; {after.optimization_tip}")
    assert after.memory_limit_mb == 512
    assert after.recommended_memory_mb is not None
    assert 300 < after.recommended_memory_mb < 512


def test_a_child_that_was_killed_by_the_lowered_limit_is_the_tuners_fault_too(run: Runs, tuning: TunerStore) -> None:
    tuning.set_mode("copes", Mode.APPLY)
    run("copes", COPES, [10] * MINIMUM)
    (result,) = run("copes", COPES, [200])
    assert result.outcome is Outcome.SUCCEEDED
    assert result.stdout == "child 0\n"
    assert result.memory_limit_mb == 512


def test_a_function_that_is_out_of_its_own_memory_is_not_run_again(run: Runs, tuning: TunerStore) -> None:
    tuning.set_mode("greedy", Mode.APPLY)
    results = run("greedy", EATS, [300] * 2, memory_mb=128)
    assert {result.outcome for result in results} == {Outcome.OUT_OF_MEMORY}
    assert "memoryMb = 128" in results[0].stderr
    assert tuning.load(["greedy"])[0].record.setbacks == 0
    (third,) = run("greedy", EATS, [10], memory_mb=128)
    assert str(third.optimization_tip).startswith("raise memoryMb above 128: ")


def test_by_default_limits_are_recommended_and_not_set(run: Runs, tuning: TunerStore) -> None:
    run("adviser", EATS, [30] * MINIMUM)
    (result,) = run("adviser", EATS, [30])
    assert result.memory_limit_mb == 512
    assert result.recommended_memory_mb is not None
    assert result.recommended_memory_mb <= 64
    assert "lower memoryMb from 512" in str(result.optimization_tip)


def test_a_function_that_is_off_is_not_learned_of(run: Runs, tuning: TunerStore) -> None:
    tuning.set_mode("private", Mode.OFF)
    (result,) = run("private", EATS, [30], learned=False)
    run("marker", EATS, [30])  # by now the tuner would have learned from the first one
    assert (result.recommended_memory_mb, result.optimization_tip) == (None, None)
    assert tuning.load(["private"])[0].record.runs == 0


def test_what_is_being_measured_is_left_alone(run: Runs, tuning: TunerStore) -> None:
    measured = f"{MEASURED}thumbs"
    tuning.set_mode(measured, Mode.APPLY)
    (result,) = run(measured, EATS, [30], learned=False)
    run("marker", EATS, [30])
    assert result.optimization_tip is None
    assert tuning.load([measured])[0].record.runs == 0


def test_new_code_runs_with_what_it_asks_for_until_it_was_seen(run: Runs, tuning: TunerStore) -> None:
    tuning.set_mode("changing", Mode.APPLY)
    run("changing", EATS, [30] * MINIMUM)
    (old,) = run("changing", EATS, [30])
    (new,) = run("changing", f"{EATS}  # another version", [30])
    assert old.memory_limit_mb is not None
    assert old.memory_limit_mb < 512
    assert new.memory_limit_mb == 512


def test_what_was_learned_expires_and_what_somebody_set_does_not(run: Runs, tuning: TunerStore, grid: Grid) -> None:
    run("expiring", EATS, [10])
    with closing(redis.Redis.from_url(grid.settings.result_url)) as client:
        assert 0 < int(client.ttl(key_of("expiring"))) <= grid.settings.tuner_expires_s
        tuning.set_mode("expiring", Mode.APPLY)
        assert client.ttl(key_of("expiring")) == -1
        run("expiring", EATS, [10])
        assert client.ttl(key_of("expiring")) == -1
        tuning.set_mode("expiring", None)
        assert 0 < int(client.ttl(key_of("expiring"))) <= grid.settings.tuner_expires_s
