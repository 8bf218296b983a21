"""A pause and a request that meet at one container, on cgroup version 2: in every order the request runs.

There `cgroup.freeze` shows at once what was requested; `cgroup.events` shows what the kernel has done, up to 0.1 s later.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from nanogrid.execution.container.cgroup import Cgroup
from nanogrid.execution.pool.child.lease import Container
from nanogrid.execution.pool.owner import stock
from nanogrid.execution.pool.owner.pooled import Pooled
from nanogrid.execution.pool.states import State
from nanogrid.result import StartKind
from tests.support.late_freezer import late_freezer
from tests.support.repeated import Repeated, await_states, once_it_runs
from tests.support.rig import Rig
from tests.support.rig import rig as open_rig
from tests.support.services import wait_until

SOURCE = (
    "import os, sys, time\n"
    "open(os.environ['NANOGRID_RESULT'], 'w').write('1')\n"
    "time.sleep(0.5)\n"
    "print('got', sys.stdin.read())"
)
"""Reports that it runs, and then takes half a second, in which the kernel has time to stop it."""

TIMEOUT_S = 5.0


class Meeting:
    """A warm container that is not in use, and a pause and a request that both want it."""

    def __init__(self, rig: Rig, folder: Path, resources: ExitStack) -> None:
        self._rig = rig
        self._stock, self._upkeep = rig.owner.stock, rig.owner._upkeep
        self._function = Repeated(rig, SOURCE)
        self._function.succeed(0)
        self._stock.take_back(self._stock.all())  # from the child that retains it
        await_states(rig, "idle")
        (self.pooled,) = self._stock.all()
        self.freezer = resources.enter_context(late_freezer(folder, self.pooled.cgroup))
        self.pooled.cgroup = self.freezer.cgroup
        self.pooled.thaws_by_cgroup = True
        self.pooled.paused_by_engine = True  # as from its second pause on
        self._requests = resources.enter_context(ThreadPoolExecutor(1))

    def pause(self) -> None:
        """What the owner does with a container that has been idle for long enough."""
        self._upkeep._pause(self.pooled)

    def request(self, during: Callable[[Container], None] | None = None) -> Future[tuple[StartKind, str]]:
        """The next request of its function, in another thread."""
        return self._requests.submit(self._function.succeed, 2, timeout_s=TIMEOUT_S, during=during)

    def request_that_runs(self) -> Future[tuple[StartKind, str]]:
        """The same. Returns when the function runs."""
        runs = threading.Event()
        request = self.request(once_it_runs(lambda _: runs.set()))
        assert runs.wait(TIMEOUT_S), request.exception()
        return request

    def before(self, expected: State, happens: Callable[[], None]) -> None:
        """Do something right before the pause moves the container into this state."""
        move, patch = self._stock.move, pytest.MonkeyPatch()

        def first(pooled: Pooled, state: State, **options: State) -> bool:
            if state is expected:
                patch.undo()
                happens()
            return move(pooled, state, **options)

        patch.setattr(self._stock, "move", first)

    def waits(self) -> bool:
        """Whether the request waits for the container."""
        return self._stock.waiting() == 1


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    """A meeting on the real engine."""
    with open_rig(tmp_path, pause_after_s=600.0) as rig, ExitStack() as resources:
        yield Meeting(rig, tmp_path / "freezer", resources)


def check(meeting: Meeting, request: Future[tuple[StartKind, str]]) -> None:
    """The request has run in the warm container, which nobody wants to be frozen any more."""
    assert request.result(2 * TIMEOUT_S) == (StartKind.WARM, "got 2\n")
    assert not meeting.freezer.is_wanted()


def test_a_request_that_is_faster_than_the_pause(meeting: Meeting) -> None:
    """The container was idle at the check, and is in use at the pause: it is not paused."""
    requests = []
    meeting.before(State.PAUSING, lambda: requests.append(meeting.request_that_runs()))
    meeting.pause()
    check(meeting, requests[0])


def test_a_request_that_comes_while_the_container_is_paused(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request waits until the pause is done, and gets the container before the kernel has stopped it."""
    monkeypatch.setattr(stock, "PAUSE_WAIT_S", 2 * TIMEOUT_S)
    requests = []

    def come() -> None:
        assert meeting.freezer.is_wanted()
        requests.append(meeting.request(once_it_runs(lambda _: meeting.freezer.keeps_up.set())))
        wait_until(meeting.waits, "the request waits")

    meeting.freezer.keeps_up.clear()
    meeting.before(State.IDLE, come)
    meeting.pause()
    check(meeting, requests[0])


def test_a_request_that_comes_while_a_pause_hangs(meeting: Meeting) -> None:
    """It does not wait for the pause to end: it runs in a new container."""
    results = []
    meeting.before(State.IDLE, lambda: results.append(meeting.request().result(2 * TIMEOUT_S)))
    meeting.pause()
    assert results == [(StartKind.COLD, "got 2\n")]
    assert meeting.pooled.state is State.IDLE


def test_a_request_before_the_kernel_has_stopped_the_container(meeting: Meeting) -> None:
    """The pause is done for the owner, but the kernel stops the container only while the function runs."""
    meeting.freezer.keeps_up.clear()
    meeting.pause()
    assert meeting.freezer.is_wanted()
    check(meeting, meeting.request(once_it_runs(lambda _: meeting.freezer.keeps_up.set())))


def test_a_request_after_the_kernel_has_stopped_the_container(meeting: Meeting) -> None:
    """The pause is done for both."""
    meeting.pause()
    wait_until(meeting.freezer.is_obeyed, "the container is stopped")
    check(meeting, meeting.request())


@pytest.fixture
def unified(tmp_path: Path) -> Iterator[Path]:
    """A new cgroup in the kernel's tree of version 2, which exists beside version 1 too."""
    root = tmp_path / "unified"
    root.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
    folder = root / f"nanogrid-{tmp_path.name}"
    try:
        folder.mkdir()
        yield folder
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "its processes are gone")
        folder.rmdir()
        subprocess.run(["umount", root], check=True)


def test_what_the_kernel_has_yet_to_stop_counts_as_frozen(unified: Path) -> None:
    """Checked right after many freezes of busy processes, some of which still run then. A thaw is visible at once."""
    cgroup = Cgroup(None, None, unified)
    busy = [subprocess.Popen([sys.executable, "-Sc", "while True: pass"]) for _ in range(8)]
    run_on = 0
    try:
        for process in busy:
            (unified / "cgroup.procs").write_text(str(process.pid))
        for _ in range(50):
            assert cgroup.freeze()
            run_on += "frozen 0" in (unified / "cgroup.events").read_text()
            assert cgroup.is_frozen()
            assert cgroup.thaw()
            assert not cgroup.is_frozen()
        assert run_on
    finally:
        cgroup.thaw()
        for process in busy:
            process.kill()
            process.wait()
