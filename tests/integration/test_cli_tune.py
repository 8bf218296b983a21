"""`nanogrid tune` against a local stack that really runs functions."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import redis
from matplotlib.image import imread

from nanogrid.results.stream.append import counter_key
from nanogrid.settings import Settings
from tests.support.command import CommandLine
from tests.support.services import wait_until

HEAVY = """
import time
data = bytearray(80 << 20)
for i in range(0, len(data), 4096):
    data[i] = 1
until = time.process_time() + 0.05
while time.process_time() < until:
    pass
"""
"""Needs more than 80 MiB, and 50 ms of a core's time: as many times longer as it gets less of one."""

SIZES = ("--memory", "64,128", "--cpus", "0.05,1")


@pytest.fixture
def heavy(tmp_path: Path) -> str:
    """A function's file."""
    path = tmp_path / "heavy.py"
    path.write_text(HEAVY)
    return str(path)


def containers(command: CommandLine) -> list[dict[str, Any]]:
    """What the worker holds."""
    found: list[dict[str, Any]] = json.loads(command.ok("pool", "--json"))
    return found


def test_a_table_the_choices_and_a_picture(command: CommandLine, heavy: str, tmp_path: Path) -> None:
    """Sizes that are too small are shown as such, and the fast one is chosen; the picture is a PNG that tells its sizes."""
    picture = tmp_path / "curve.png"
    lines = command.ok("tune", heavy, *SIZES, "--runs", "1", "--chart", str(picture)).splitlines()
    rows = [line.split() for line in lines]
    assert [row[:6] for row in rows[1:3]] == [["64", "MiB", cpus, "out", "of", "memory"] for cpus in ("0.05", "1")]
    assert [row[:3] for row in rows[3:5]] == [["128", "MiB", "0.05"], ["128", "MiB", "1"]]
    assert lines[6:] == [f"for {name:<10} 128 MiB, 1 CPU" for name in ("cost:", "speed:", "balanced:")]
    assert imread(picture).shape[:2] == (780, 900)
    assert b"64 MiB, 0.05 CPUs: out of memory" in picture.read_bytes()


def test_json_and_an_svg(command: CommandLine, heavy: str, tmp_path: Path) -> None:
    """Every size with its figures; all runs that counted started warm, although two sizes cost their containers."""
    picture = tmp_path / "curve.svg"
    told = json.loads(command.ok("tune", heavy, *SIZES, "--runs", "1", "--chart", str(picture), "--json"))
    assert [(size["memoryMb"], size["cpus"], size["outcome"], size["runs"]) for size in told["sizes"]] == [
        (64, 0.05, "OUT_OF_MEMORY", 0),
        (64, 1.0, "OUT_OF_MEMORY", 0),
        (128, 0.05, "SUCCEEDED", 1),
        (128, 1.0, "SUCCEEDED", 1),
    ]
    slow, fast = told["sizes"][2:]
    assert slow["timeMs"] > fast["timeMs"] >= 50
    assert slow["gbSeconds"] == pytest.approx(slow["timeMs"] / 8000)
    assert all(80 << 20 < size["peakMemoryBytes"] <= 128 << 20 for size in (slow, fast))
    assert [size["notWarm"] for size in (slow, fast)] == [0, 0]
    best = {"memoryMb": 128, "cpus": 1.0}
    assert told["choices"] == {"cost": best, "speed": best, "balanced": best}
    assert (told["functionId"], told["chart"]) == ("heavy", str(picture))
    texts = {text.strip() for text in ElementTree.parse(picture).getroot().itertext()}
    assert {"64 MiB", "128 MiB", "out of memory", "cost, speed, balanced"} <= texts


def test_it_is_measured_under_another_id_and_leaves_nothing_for_ever(command: CommandLine) -> None:
    """The function's own containers are not touched, the tuner learns nothing of it, and every key in Redis but the stream expires."""
    command.ok("tune", "examples/functions/hello", "--payload", '{"name": "grid"}', "--runs", "1", "--memory", "64,128")
    held = [shown for shown in containers(command) if shown["functionId"] == "tune:hello"]
    assert [shown["runs"] for shown in held] == [4]
    with redis.Redis(port=command.ports["redis"]) as client:
        keys = list(client.scan_iter())
        assert keys
        assert [key for key in keys if b"tune:hello" in key] == []
        stream = Settings.model_fields["stream_name"].default
        assert {key.decode() for key in keys if client.ttl(key) == -1} == {stream, counter_key(stream)}


def test_a_function_that_fails_by_itself_ends_it(command: CommandLine, tmp_path: Path) -> None:
    """With the end of its stderr and exit code 1, and without a chart."""
    path, picture = tmp_path / "broken.py", tmp_path / "curve.png"
    path.write_text("import sys\nsys.stderr.write('no table customers\\n')\nsys.exit(7)\n")
    done = command.run("tune", str(path), "--memory", "64,128", "--chart", str(picture))
    assert done.returncode == 1
    tail, error = done.stderr.decode().splitlines()[-2:]
    assert tail == "no table customers"
    assert error == "error: the function succeeded at no size (failed): its stderr ends as above"
    assert not picture.exists()


def test_a_size_beyond_the_deployments_largest_is_refused(command: CommandLine, heavy: str) -> None:
    """Before any size is measured."""
    done = command.run("tune", heavy, "--memory", "64,8192")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"memoryMb: 8192 is more than this deployment's largest, 4096" in done.stderr


def test_interrupting_it_cancels_the_run(command: CommandLine, tmp_path: Path) -> None:
    """Ctrl-C exits with 130; nobody waits for what was under way."""
    path = tmp_path / "endless.py"
    path.write_text("import time; time.sleep(100)")
    process = command.start("tune", str(path), "--timeout-ms", "100000")
    assert process.stdout is not None

    def running() -> list[str]:
        shown = [one for one in containers(command) if one["functionId"] == "tune:endless"]
        return [one["requestId"] for one in shown if one["state"] == "leased"]

    wait_until(running, "the function runs")
    (request_id,) = running()
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 130
    assert "the current run was cancelled" in told
    assert command.run("result", request_id, "--wait", "20").returncode == 130
