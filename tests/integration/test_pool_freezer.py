"""A pause and a request that meet at one container, on cgroup version 2: in every order the request runs on.

There `cgroup.freeze` says at once what is wanted, `cgroup.events` what has come of it, up to a tenth of a second later.
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
"""Says that it runs, and then takes half a second, in which the kernel has time to stop it."""

TIMEOUT_S = 5.0


class Meeting:
    """A warm container that nobody uses, and a pause and a request that both want it."""

    def __init__(self, rig: Rig, folder: Path, resources: ExitStack) -> None:
        self._rig = rig
        self._stock, self._tender = rig.owner.stock, rig.owner._tender
        self._function = Repeated(rig, SOURCE)
        self._function.succeed(0)
        self._stock.take_back(self._stock.all())  # from the hand in which it rests
        await_states(rig, "idle")
        (self.pooled,) = self._stock.all()
        self.freezer = resources.enter_context(late_freezer(folder, self.pooled.cgroup))
        self.pooled.cgroup = self.freezer.cgroup
        self.pooled.thaws_by_cgroup = True
        self.pooled.paused_by_engine = True  # as from its second pause on
        self._requests = resources.enter_context(ThreadPoolExecutor(1))

    def pause(self) -> None:
        """What the owner does with a container that it found idle for long enough."""
        self._tender._pause(self.pooled)

    def request(self, during: Callable[[Container], None] | None = None) -> Future[tuple[StartKind, str]]:
        """The next request of its function, beside the caller."""
        return self._requests.submit(self._function.succeed, 2, timeout_s=TIMEOUT_S, during=during)

    def request_that_runs(self) -> Future[tuple[StartKind, str]]:
        """The same, from when its function runs."""
        runs = threading.Event()
        request = self.request(once_it_runs(lambda _: runs.set()))
        assert runs.wait(TIMEOUT_S), request.exception()
        return request

    def before(self, name: str, happens: Callable[[], None]) -> None:
        """Let something happen right before the pause's next call of this method of the stock."""
        method, patch = getattr(self._stock, name), pytest.MonkeyPatch()

        def first(pooled: Pooled, *states: State) -> object:
            patch.undo()
            happens()
            return method(pooled, *states)

        patch.setattr(self._stock, name, first)

    def waits(self) -> bool:
        """Whether the request waits for the container."""
        return self._stock.waiting() == 1


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    """One on the real engine."""
    with open_rig(tmp_path, pause_after_s=600.0) as rig, ExitStack() as resources:
        yield Meeting(rig, tmp_path / "freezer", resources)


def check(meeting: Meeting, request: Future[tuple[StartKind, str]]) -> None:
    """It has run in the container that was there, which is not to stand still any more."""
    assert request.result(2 * TIMEOUT_S) == (StartKind.WARM, "got 2\n")
    assert not meeting.freezer.is_wanted()


def test_a_request_that_is_faster_than_the_pause(meeting: Meeting) -> None:
    """The container was idle when it was looked at, and is in use when it is to be paused: it is left alone."""
    requests = []
    meeting.before("take", lambda: requests.append(meeting.request_that_runs()))
    meeting.pause()
    check(meeting, requests[0])


def test_a_request_that_comes_while_the_container_is_paused(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until the pause is done, and is given the container before the kernel has stopped it."""
    monkeypatch.setattr(stock, "PAUSE_WAIT_S", 2 * TIMEOUT_S)
    requests = []

    def come() -> None:
        assert meeting.freezer.is_wanted()
        requests.append(meeting.request(once_it_runs(lambda _: meeting.freezer.keeps_up.set())))
        wait_until(meeting.waits, "the request waits")

    meeting.freezer.keeps_up.clear()
    meeting.before("move", come)
    meeting.pause()
    check(meeting, requests[0])


def test_a_request_before_the_kernel_has_stopped_the_container(meeting: Meeting) -> None:
    """The pause is done for the owner and not yet for the kernel, which gets to it while the function runs."""
    meeting.freezer.keeps_up.clear()
    meeting.pause()
    assert meeting.freezer.is_wanted()
    check(meeting, meeting.request(once_it_runs(lambda _: meeting.freezer.keeps_up.set())))


def test_a_request_after_the_kernel_has_stopped_the_container(meeting: Meeting) -> None:
    """The pause is over for all."""
    meeting.pause()
    wait_until(meeting.freezer.is_obeyed, "it stands still")
    check(meeting, meeting.request())


@pytest.fixture
def unified(tmp_path: Path) -> Iterator[Path]:
    """A cgroup of our own in the kernel's tree of version 2, which is there beside version 1 too."""
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
    """Asked right after many freezes of busy processes, some of which run on by then. A thaw is seen at once."""
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
