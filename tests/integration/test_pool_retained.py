"""A container that a child retains between two runs, on the real engine: which side gets it when several want it."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nanogrid.errors import PoolExhaustedError
from nanogrid.execution.pool.states import State
from nanogrid.result import StartKind
from tests.support.child import child
from tests.support.repeated import Repeated, await_states, shown, written
from tests.support.rig import Rig
from tests.support.rig import rig as open_rig
from tests.support.services import wait_until

ECHO = "import sys; print('got', sys.stdin.read())"
SLOW = (
    "import os, sys, time\nopen(os.environ['NANOGRID_RESULT'], 'w').write(os.environ['NANOGRID_REQUEST_ID'])\n"
    "time.sleep(float(sys.stdin.read() or 600))\nprint('done')"
)
NEVER_PAUSED = {"pause_after_s": 600.0}
COLD, WARM = StartKind.COLD, StartKind.WARM


def is_retained(rig: Rig) -> bool:
    """Whether a child retains the only container, at rest."""
    (pooled,) = rig.owner.stock.all()
    return pooled.state is State.LEASED and pooled.resting_since() is not None


def await_run(rig: Rig, request_id: str) -> None:
    """Wait until this request's function runs and has written its result."""

    def runs() -> bool:
        (pooled,) = rig.owner.stock.all()
        (container,) = shown(rig)
        leased = (container.state, container.request_id) == ("leased", request_id)
        return leased and pooled.link is not None and written(pooled.link.peer_pid()) == request_id

    wait_until(runs, "the function runs")


def test_the_next_run_begins_without_the_owner(tmp_path: Path) -> None:
    """No message is sent, and yet the pool shows when the container is at rest, which request it runs, and how many it ran."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, SLOW)
        with child(here, function) as first:
            assert first.run(0).start is COLD
            asked = here.owner.stock.all()[0].retention
            for _ in range(3):
                assert first.run(0).start is WARM
            assert here.owner.stock.all()[0].retention is asked
            (container,) = await_states(here, "idle")
            assert (container.runs, container.request_id) == (4, None)
            assert is_retained(here)
            first.begin(1, request_id="the-fifth")
            await_run(here, "the-fifth")
            assert first.result().out == "done\n"
            (container,) = await_states(here, "idle")
            assert container.runs == 5


def test_two_children_share_a_container_at_rest(tmp_path: Path) -> None:
    """A child gets the container that the other one retains, and retains it then; the other one asks for it in its turn."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, ECHO)
        with child(here, function) as first, child(here, function) as second:
            used = first.run(0).container_id
            for turn in range(3):
                for one in (first, second):
                    ran = one.run(turn)
                    assert (ran.start, ran.out, ran.container_id) == (WARM, f"got {turn}\n", used)
            (container,) = await_states(here, "idle")
            assert container.runs == 7


def test_two_children_at_once_have_a_container_each(tmp_path: Path) -> None:
    """However fast they are: each gets its own results, and neither waits for the other's container."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, ECHO)
        with child(here, function) as first, child(here, function) as second:
            for turn in range(30):
                first.begin(f"a {turn}")
                second.begin(f"b {turn}")
                assert first.result().out == f'got "a {turn}"\n'
                assert second.result().out == f'got "b {turn}"\n'
            containers = await_states(here, "idle", "idle")
            assert sum(container.runs for container in containers) == 60


def test_another_function_gets_the_room_of_a_retained_container(tmp_path: Path) -> None:
    """At once: the owner takes the container back."""
    with open_rig(tmp_path, pool_containers=1, **NEVER_PAUSED) as here:
        functions = Repeated(here, ECHO), Repeated(here, ECHO)
        with child(here, *functions) as first, child(here, *functions) as second:
            first.run(1, 0)
            assert is_retained(here)
            assert second.run(2, 1).out == "got 2\n"
            assert first.run(3, 0).start is COLD


def test_a_child_that_is_never_idle_starves_no_request(tmp_path: Path) -> None:
    """It runs one request after another in its retained container, and yet the other function gets its turn."""
    with open_rig(tmp_path, pool_containers=1, pool_wait_s=30, **NEVER_PAUSED) as here:
        functions = Repeated(here, ECHO), Repeated(here, ECHO)
        stop = threading.Event()
        with child(here, *functions) as busy, child(here, *functions) as other:
            busy.run(0)

            def keep_busy() -> None:
                while not stop.is_set():
                    busy.run(0)

            hurrying = threading.Thread(target=keep_busy)
            hurrying.start()
            try:
                for turn in range(5):
                    assert other.run(turn, 1).out == f"got {turn}\n"
            finally:
                stop.set()
                hurrying.join()


def test_a_child_that_dies_at_rest_leaves_its_container(tmp_path: Path) -> None:
    """Nothing of the child is in it: the next request gets it warm."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, ECHO)
        with child(here, function) as first:
            used = first.run(1).container_id
            assert is_retained(here)
            first.kill()
        (container,) = await_states(here, "idle")
        assert container.container_id == used
        run = function.run(2)
        assert (run.container.start_kind, run.container.id, run.out) == (WARM, used, "got 2\n")


def test_a_child_that_dies_in_a_run_loses_its_retained_container(tmp_path: Path) -> None:
    """The connection is the lease, also for runs that did not ask the owner."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, SLOW)
        with child(here, function) as first:
            first.run(0)
            first.begin(600, request_id="cut-short")
            await_run(here, "cut-short")
            first.kill()
        wait_until(lambda: here.containers() == [], "the container is gone")
        assert function.succeed(0) == (COLD, "done\n")


def test_a_retained_container_is_taken_back_to_be_paused(tmp_path: Path) -> None:
    """At rest for long enough it is paused, and then serves the next request warm."""
    with open_rig(tmp_path, pause_after_s=0.05) as here:
        function = Repeated(here, ECHO)
        with child(here, function) as first:
            for turn in range(3):
                ran = first.run(turn)
                assert ran.start is (WARM if turn else COLD)
                await_states(here, "paused")
            assert [one.runs for one in shown(here)] == [3]


def test_a_retained_container_expires(tmp_path: Path) -> None:
    """After the idle timeout, even if it is never paused."""
    with open_rig(tmp_path, idle_timeout_s=0.3, **NEVER_PAUSED) as here:
        function = Repeated(here, ECHO)
        with child(here, function) as first:
            first.run(1)
            wait_until(lambda: here.containers() == [], "it is gone")
            assert first.run(2).start is COLD


def test_a_retained_container_that_dies_costs_no_request(tmp_path: Path) -> None:
    """Its child finds out and gets another one; without a request the owner finds out."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, ECHO)
        with child(here, function) as first:
            for turn in range(2):
                used = first.run(turn).container_id
                await_states(here, "idle")
                here.engine.remove(used)
                assert first.run(turn).container_id != used
            here.engine.remove(shown(here)[0].container_id)
            await_states(here)


def test_a_run_with_other_limits_asks_the_owner(tmp_path: Path) -> None:
    """The owner changes the limits; the container stays the same."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        small = Repeated(here, ECHO)
        large = Repeated(here, ECHO)
        large.wanted = replace(small.wanted, limits=replace(small.wanted.limits, memory_mb=256))
        with child(here, small, large) as first:
            used = first.run(1, 0).container_id
            for turn in range(2):
                for function, limit_mb in ((1, 256), (0, small.wanted.limits.memory_mb)):
                    ran = first.run(turn, function)
                    assert (ran.start, ran.container_id) == (WARM, used)
                    assert [one.memory_limit_mb for one in shown(here)] == [limit_mb]


def test_a_retained_container_of_an_outdated_image_is_taken_back(tmp_path: Path) -> None:
    """When an image's name stands for another image, the owner takes retained containers back."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, ECHO)
        with child(here, function) as first:
            first.run(1)
            (pooled,) = here.owner.stock.all()
            here.owner.stock.take_back([pooled], after_run=True)
            assert pooled.retention is None
            await_states(here, "idle")
            assert first.run(2).start is WARM


def test_a_retained_container_is_clean_before_its_next_run(tmp_path: Path) -> None:
    """The child waits until the runner reports that it is clean, however long that takes."""
    litter = (
        "import os\nfor folder in ('/workspace', '/tmp', '/dev/shm'):\n"
        "    print(len(os.listdir(folder)), end=' ')\n"
        "    for number in range(2000): open(f'{folder}/{number}', 'w').close()\n"
    )
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, litter)
        with child(here, function) as first:
            assert [first.run().out for _ in range(4)] == ["1 0 0 "] * 4
            assert here.owner.stock.all()[0].state is State.LEASED


@pytest.mark.parametrize("at_rest", [True, False], ids=["at rest", "in a run"])
def test_an_owner_that_stops_takes_retained_containers_back(tmp_path: Path, at_rest: bool) -> None:
    """Nothing is left, and its children get an error that may be retried."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, SLOW)
        with child(here, function) as first:
            first.run(0)
            if not at_rest:
                first.begin(600, request_id="under-way")
                await_run(here, "under-way")
            here.owner.stop()
            if at_rest:
                first.begin(0)
            kind = "PoolExhaustedError" if at_rest else "ContainerLostError"
            assert first.error().startswith(kind)
        assert here.containers() == []
        here.owner = type(here.owner)(here.settings)  # for the rig to stop
        here.owner.start()


def test_without_a_time_to_rest_nothing_is_retained(tmp_path: Path) -> None:
    """Nor without reuse. No descriptors are kept either."""
    for changes in ({"pause_after_s": 0.0}, {"idle_timeout_s": 0.0}):
        with open_rig(tmp_path / str(len(changes)) / next(iter(changes)), **changes) as here:
            function = Repeated(here, ECHO)
            with child(here, function) as first:
                first.run(1)
                assert all(pooled.retention is None for pooled in here.owner.stock.all())
                assert first.run(2).out == "got 2\n"


def test_retaining_leaks_nothing(tmp_path: Path) -> None:
    """A child has no more open files after many runs, and an owner has one token and one shared page for each child."""
    with open_rig(tmp_path, pool_containers=1, **NEVER_PAUSED) as here:
        functions = Repeated(here, ECHO), Repeated(here, ECHO)
        before = shared_by(os.getpid())
        with child(here, *functions) as first:
            counts = set()
            for turn in range(8):
                for function in (0, 0, turn % 2):
                    first.run(turn, function)
                counts.add(len(list(Path(f"/proc/{first.pid}/fd").iterdir())))
                assert shared_by(os.getpid()) == (before[0] + 1, before[1] + 1)
            assert len(counts) == 1
        wait_until(lambda: shared_by(os.getpid())[1] == before[1], "the shared page went with the child")


def shared_by(pid: int) -> tuple[int, int]:
    """How many tokens and shared pages a process holds."""
    tokens = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # another thread has closed it meanwhile
            tokens += str(path.readlink()) == "anon_inode:[eventfd]"
    return tokens, Path(f"/proc/{pid}/maps").read_text().count("/memfd:shared-page")


def test_an_owner_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """A child that cannot reach its owner raises, whatever it retained."""
    with open_rig(tmp_path, **NEVER_PAUSED) as here:
        function = Repeated(here, ECHO)
        function.succeed(1)
        here.owner.stop()
        with pytest.raises(PoolExhaustedError):
            function.run(2)
        here.owner = type(here.owner)(here.settings)
        here.owner.start()


def test_a_function_with_packages_among_its_code_stays_in_its_container(rig: Rig) -> None:
    """Its workspace is kept between runs, and no end of a connection that the host still holds is taken for one that a run has left."""
    files = {
        "main.py": "import parcel\nprint(parcel.TOKEN)",
        "parcel.py": "TOKEN = 1",
        "parcel-1.0.dist-info/RECORD": "parcel.py,,\nparcel-1.0.dist-info/RECORD,,\n",
    }
    function = Repeated(rig, files)
    runs = [function.run() for _ in range(6)]
    assert [run.out for run in runs] == ["1\n"] * 6
    assert len({run.container.id for run in runs}) == 1
