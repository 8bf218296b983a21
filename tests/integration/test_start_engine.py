"""`scripts/start-engine` with a second, real dockerd that shares nothing with the machine's own.

See `tests/support/second_engine.py` for how it is kept apart.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.second_engine import SecondEngine, is_alive

# A second engine starts a containerd of its own and gives it 15 s, which is short on a machine that does three other things.
pytestmark = pytest.mark.alone


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SecondEngine]:
    """A second engine that is not started yet, and does not outlive the test."""
    second = SecondEngine(tmp_path)
    yield second
    if second.is_up:
        second.kill()


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process that has nothing to do with Docker."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def test_an_engine_is_started_once(engine: SecondEngine) -> None:
    """Where none answers one is started; where one answers nothing happens, and nothing is said."""
    assert engine.start("--check").returncode == 1
    assert not engine.pid_file.exists()
    first = engine.start()
    assert first.returncode == 0, first.stderr
    pid = engine.pid
    second = engine.start()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert engine.pid == pid
    assert engine.start("--check").returncode == 0


def test_a_hard_kill_is_no_obstacle_and_no_bystander_is_hurt(engine: SecondEngine, bystander: int) -> None:
    """Pid files that name a process of somebody else and sockets without a listener are removed, and it starts again."""
    assert engine.start().returncode == 0
    engine.kill()
    for path in (engine.pid_file, engine.exec_root / "containerd" / "containerd.pid"):
        path.write_text(str(bystander))
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(engine.containerd_socket))
    again = engine.start()
    assert again.returncode == 0, again.stderr
    assert engine.pid != bystander
    assert is_alive(bystander)
    assert not engine.containerd_socket.exists()


def test_a_folder_in_place_of_the_socket_is_no_obstacle(engine: SecondEngine) -> None:
    """A container that mounted the missing socket has left an empty folder of its name: it gives way."""
    engine.socket.mkdir()
    started = engine.start()
    assert started.returncode == 0, started.stderr
    assert engine.socket.is_socket()


def test_an_engine_that_is_alive_is_left_alone(engine: SecondEngine) -> None:
    """A dockerd that does not answer is named with its process id, and is neither killed nor robbed of its files."""
    assert engine.start().returncode == 0
    engine.signal(signal.SIGSTOP)
    try:
        refused = engine.start("--patience", "1")
        assert refused.returncode == 1
        assert f"dockerd (pid {engine.pid}) is alive and did not answer" in refused.stderr
    finally:
        engine.signal(signal.SIGCONT)
    assert engine.start("--check").returncode == 0


def test_a_failing_start_shows_the_engines_own_words(engine: SecondEngine) -> None:
    """When dockerd cannot come up, the end of its log is shown and the exit code says so."""
    (engine.folder / "data").write_text("a file where a folder should be")
    failed = engine.start()
    assert failed.returncode == 1
    assert "dockerd did not come up" in failed.stderr
    assert str(engine.folder / "data") in failed.stderr
