"""`nanogrid tuner` on the records of a real Redis."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nanogrid.connections.result_redis import connect
from nanogrid.settings import Settings
from nanogrid.tuner.store import SampleBatch, TunerStore
from nanogrid.wire.tuner_mode import Mode
from tests.integration.test_tuning import run
from tests.support.command import ENTRY
from tests.support.services import redis_service, running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(redis_service(tmp_path_factory.mktemp("redis"))) as service:
        yield f"redis://127.0.0.1:{service.port}/0"


@pytest.fixture(scope="module")
def tuning(url: str) -> Iterator[TunerStore]:
    """Records of three functions."""
    settings = Settings(result_url=url)
    with closing(connect(settings, retries=1)) as client:
        made = TunerStore(settings, client)
        made.learn(
            SampleBatch.of([*(run("thumbs", peak) for peak in [30.0] * 20 + [34.0] * 5), run("new"), run("reset-me")])
        )
        made.set_mode("thumbs", Mode.APPLY)
        yield made


def command(url: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`nanogrid tuner ...` in a pipe."""
    done = subprocess.run(
        [*ENTRY, "tuner", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "NANOGRID_RESULT_URL": url, "COLUMNS": "200"},
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_list_shows_every_function(tuning: TunerStore, url: str) -> None:
    lines = command(url, "list").stdout.splitlines()
    assert lines[0].split("  ")[0] == "function"
    thumbs = next(line for line in lines if line.startswith("thumbs"))
    assert thumbs.split() == ["thumbs", "apply", "(own)", "25", "512", "MiB", "48", "MiB", "48", "MiB", "0"]
    new = next(line for line in lines if line.startswith("new"))
    assert new.split() == ["new", "recommend", "1", "512", "MiB", "–", "512", "MiB", "0"]  # noqa: RUF001  # a dash for "none"


def test_list_as_json(tuning: TunerStore, url: str) -> None:
    rows = {row["functionId"]: row for row in json.loads(command(url, "list", "--json").stdout)}
    thumbs = rows["thumbs"]
    assert (thumbs["mode"], thumbs["ownMode"], thumbs["runs"]) == ("apply", "apply", 25)
    assert (thumbs["requestedMemoryMb"], thumbs["recommendedMemoryMb"], thumbs["nextLimitMb"]) == (512, 48, 48)
    assert rows["new"]["recommendedMemoryMb"] is None
    assert "9 more are needed" in rows["new"]["tip"]


def test_show_draws_the_histogram(tuning: TunerStore, url: str) -> None:
    shown = command(url, "show", "thumbs").stdout
    assert "lower memoryMb from 512 to 48: " in shown
    rows = [line for line in shown.splitlines() if "█" in line]
    assert [row.rsplit(" ", 1)[1] for row in rows] == ["80.0%", "20.0%"]
    lengths = [row.count("█") for row in rows]
    assert lengths == [40, 10]


def test_show_as_json_holds_the_histogram(tuning: TunerStore, url: str) -> None:
    histogram = json.loads(command(url, "show", "thumbs", "--json").stdout)["histogram"]
    assert histogram == [{"highestMb": 30.0, "share": 0.8}, {"highestMb": 34.0, "share": 0.2}]


def test_what_is_not_known_is_said_so(tuning: TunerStore, url: str) -> None:
    assert "nothing is known of 'nobody'" in command(url, "show", "nobody", code=1).stderr
    assert "nothing is known of 'nobody'" in command(url, "reset", "nobody", code=1).stderr


def test_set_changes_the_mode_until_it_is_the_deployments_again(tuning: TunerStore, url: str) -> None:
    assert "new: off from its next run on" in command(url, "set", "new", "off").stderr
    assert tuning.load(["new"])[0].mode is Mode.OFF
    assert "follows the deployment again: recommend" in command(url, "set", "new", "default").stderr
    assert tuning.load(["new"])[0].mode is None
    assert "'on' is not a mode: accepted are default, off, recommend, apply" in command(
        url, "set", "new", "on", code=2
    ).stderr.replace("\n", " ")


def test_reset_forgets(tuning: TunerStore, url: str) -> None:
    assert "forgotten" in command(url, "reset", "reset-me").stderr
    assert tuning.load(["reset-me"])[0].record.runs == 0


def test_an_empty_redis_is_no_error(tmp_path: Path) -> None:
    with running(redis_service(tmp_path)) as service:
        assert "no function is known yet" in command(f"redis://127.0.0.1:{service.port}/0", "list").stderr


def test_a_redis_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    done = command("redis://127.0.0.1:1/0", "list", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
