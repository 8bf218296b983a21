"""`nanogrid pool` with workers that hold real containers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import ENTRY, CommandLine
from tests.support.rig import PYTHON_IMAGE, Rig
from tests.support.rig import rig as open_rig
from tests.support.services import wait_until

HELLO = {"main.py": "print('hello')"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """An owner that pauses no container during the test."""
    with open_rig(tmp_path, pause_after_s=600.0) as here:
        yield here


def environment(rig: Rig) -> dict[str, str]:
    """The environment that points the command to this owner's data folder."""
    return {**os.environ, "NANOGRID_DATA_DIR": str(rig.settings.data_dir)}


def pool(rig: Rig, *words: str) -> str:
    """The output of `nanogrid pool` in a pipe."""
    done = subprocess.run(
        [*ENTRY, "pool", *words], capture_output=True, text=True, env=environment(rig), timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def only(rig: Rig, state: str) -> dict[str, Any]:
    """The owner's one container, once it is in this state."""
    told: list[dict[str, Any]] = []

    def look() -> bool:
        told[:] = json.loads(pool(rig, "--json"))
        return [row["state"] for row in told] == [state]

    wait_until(look, f"the container is {state}")
    return told[0]


class Terminal:
    """`nanogrid pool` on a terminal that is 200 characters wide."""

    def __init__(self, rig: Rig, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self._shown = b""
        self.process = subprocess.Popen(
            [*ENTRY, "pool", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment(rig), "COLUMNS": "200", "LINES": "50", "TERM": "xterm-256color"},
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65_536):
                self._shown += data
        except OSError:  # Linux reports that the other end of the terminal is closed
            return

    @property
    def text(self) -> str:
        """Everything that was written so far, including control sequences."""
        return self._shown.decode(errors="replace")

    def end(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        self.close()
        return code

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)


def test_a_containers_life_is_shown(rig: Rig) -> None:
    """Leased to its request during the run, idle afterwards, with its runs and its memory as the kernel counts it."""
    wanted, timeout_s = rig.wanted(HELLO)
    with rig.pool.lease(wanted, None) as container:
        busy = only(rig, "leased")
        assert (busy["name"], busy["containerId"]) == (container.name, container.id)
        assert (busy["functionId"], busy["requestId"]) == ("f", wanted.request_id)
        assert (busy["worker"], busy["image"], busy["runs"]) == (rig.owner.id, PYTHON_IMAGE, 0)
        assert 0 < busy["memoryBytes"] < busy["memoryLimitMb"] * 1024 * 1024
        assert container.run(timeout_s=timeout_s).exit_code == 0
    rests = only(rig, "idle")
    assert (rests["name"], rests["functionId"], rests["requestId"], rests["runs"]) == (busy["name"], "f", None, 1)
    assert 0 <= rests["inStateSeconds"] < rests["ageSeconds"]
    heading, line, summary = pool(rig).splitlines()
    assert heading.split()[:5] == ["worker", "container", "state", "function", "request"]
    assert line.split()[:4] == [rig.owner.id[:6], busy["name"], "idle", "f"]
    assert summary.startswith("1 container: 1 idle · ")
    assert summary.endswith(" MiB in use · 1 worker")


def test_live_shows_what_changes_until_it_is_interrupted(rig: Rig) -> None:
    """It starts without containers, shows a new one in place, and Ctrl-C is not a failure."""
    screen = Terminal(rig, "--live")
    try:
        wait_until(lambda: "1 worker of " in screen.text, "the sentence is shown")
        wanted, _ = rig.wanted(HELLO)
        with rig.pool.lease(wanted, None) as container:
            wait_until(lambda: container.name in screen.text, "the container is shown")
            wait_until(lambda: "1 leased" in screen.text, "the summary is shown")
            assert screen.process.poll() is None
        assert "\x1b[2K" in screen.text  # lines are erased before they are written again
        assert screen.end() == 0
        assert "Traceback" not in screen.text
        assert screen.text.endswith("\x1b[?25h")  # the cursor is visible again
    finally:
        if screen.process.returncode is None:
            screen.close()


def test_the_local_stacks_containers_are_shown(tmp_path: Path) -> None:
    """Without any setting the command finds the running stack, and names it on stderr."""
    command = CommandLine(tmp_path / "stack")
    try:
        command.up()

        def prewarmed() -> bool:
            rows = json.loads(command.ok("pool", "--json"))
            return any(row["functionId"] is None and row["state"] in {"prewarmed", "paused"} for row in rows)

        wait_until(prewarmed, "a prewarmed container is shown", 60)
        done = command.run("pool")
        assert done.returncode == 0
        assert done.stderr.decode() == f"using the local stack in {command.folder}\n"
        assert done.stdout.decode().endswith(" MiB in use · 1 worker\n")
    finally:
        command.ok("down", "--timeout-s", "0")
