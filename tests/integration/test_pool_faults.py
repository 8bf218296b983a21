"""Faults under the pool, on the real engine: every request succeeds or may be retried, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.errors import ImageNotFound

from nanogrid.errors import ContainerLostError, ContainerStartError, NanoGridError, PoolExhaustedError
from nanogrid.execution.container.hardening import MIB
from nanogrid.execution.container.labels import DATA_LABEL, data_id
from nanogrid.execution.pool.identity import NUMBER_LABEL
from nanogrid.execution.pool.snapshot import ContainerSnapshot
from nanogrid.result import Outcome, StartKind
from tests.support.repeated import Repeated, await_states, engine_state, first_pid, once_it_runs, shown, states
from tests.support.rig import PYTHON_IMAGE, Rig
from tests.support.rig import rig as open_rig
from tests.support.second_engine import is_alive
from tests.support.services import wait_until

ECHO = "import sys; print('got', sys.stdin.read())"
"""Prints its payload, so that no result is mistaken for another's."""

SLOW = (
    "import os, sys, time\nopen(os.environ['NANOGRID_RESULT'], 'w').write('1')\n"
    "time.sleep(float(sys.stdin.read() or 600))\nprint('done')"
)
"""Reports that it runs, and then takes as many seconds as the payload says."""

NEVER_PAUSED = {"pause_after_s": 600.0}
PAUSED_SOON = {"pause_after_s": 0.0}

Fault = Callable[[Rig, str], None]


def kill_first_process(rig: Rig, container_id: str) -> None:
    """Wait for its end, unless it is paused: a frozen process ends when it is thawed."""
    pid = first_pid(rig, container_id)
    os.kill(pid, signal.SIGKILL)
    if engine_state(rig, container_id) == "running":
        wait_until(lambda: not is_alive(pid), "the first process has ended")


def remove(rig: Rig, container_id: str) -> None:
    rig.engine.remove(container_id)


def pause(rig: Rig, container_id: str) -> None:
    rig.engine.pause(container_id)


def unpause(rig: Rig, container_id: str) -> None:
    rig.engine.unpause(container_id)


def stop(rig: Rig, container_id: str) -> None:
    rig.engine.api.stop(container_id, timeout=1)


def kill(rig: Rig, container_id: str) -> None:
    rig.engine.api.kill(container_id)


ENDS = pytest.mark.parametrize("end", [kill_first_process, remove, stop, kill], ids=lambda fault: str(fault.__name__))


@contextmanager
def resting(folder: Path, state: str, **changes: Any) -> Iterator[tuple[Rig, Repeated, ContainerSnapshot]]:
    """A rig with one function whose warm container is `idle` or `paused`."""
    with open_rig(folder, **(NEVER_PAUSED if state == "idle" else PAUSED_SOON), **changes) as here:
        function = Repeated(here, ECHO)
        assert function.succeed(1) == (StartKind.COLD, "got 1\n")
        (container,) = await_states(here, state)
        yield here, function, container


# -- containers that are ended from outside


@ENDS
def test_a_container_that_is_ended_while_idle_is_replaced(tmp_path: Path, end: Fault) -> None:
    """The next request of its function starts another one and gets its own result."""
    with resting(tmp_path, "idle") as (here, function, container):
        end(here, container.container_id)
        assert function.succeed(2) == (StartKind.COLD, "got 2\n")
        assert function.succeed(3) == (StartKind.WARM, "got 3\n")
        assert [one.container_id for one in await_states(here, "idle")] != [container.container_id]


@ENDS
def test_a_container_that_is_ended_while_paused_is_replaced(tmp_path: Path, end: Fault) -> None:
    """The same for a paused container. If it dies only when it is thawed, the request may be retried."""
    with resting(tmp_path, "paused") as (here, function, container):
        end(here, container.container_id)
        assert function.retried(2) == "got 2\n"
        assert function.succeed(3) == (StartKind.WARM, "got 3\n")
        assert container.container_id not in [one.container_id for one in shown(here)]


@ENDS
def test_a_container_that_is_ended_during_a_run_is_lost(tmp_path: Path, end: Fault) -> None:
    """The run may be retried and has no result. The next run succeeds."""
    with open_rig(tmp_path) as here:
        function = Repeated(here, SLOW)
        with pytest.raises(ContainerLostError) as lost:
            function.run(during=once_it_runs(lambda container: end(here, container.id)))
        assert lost.value.retryable
        assert function.succeed(0) == (StartKind.COLD, "done\n")
        with pytest.raises(ContainerLostError):
            function.run(during=once_it_runs(lambda container: end(here, container.id)))
        wait_until(lambda: here.containers() == [], "the engine has forgotten it")


def test_a_dead_container_is_found_without_a_request(tmp_path: Path) -> None:
    """The upkeep of the pool removes an idle container that has ended."""
    with resting(tmp_path, "idle") as (here, _, container):
        kill_first_process(here, container.container_id)
        await_states(here)
        wait_until(lambda: here.containers() == [], "the engine has forgotten it")


def test_prewarmed_containers_that_die_are_replaced(tmp_path: Path) -> None:
    """A dead prewarmed container is replaced, and a lease that comes first does not get the dead one."""
    with open_rig(tmp_path, prewarmed={"python": 2}, **NEVER_PAUSED) as here:
        here.owner.prewarm(["python"])
        made = await_states(here, "prewarmed", "prewarmed")
        for one in made:
            kill_first_process(here, one.container_id)
        assert Repeated(here, ECHO).succeed(1)[1] == "got 1\n"
        fresh = await_states(here, "idle", "prewarmed", "prewarmed")
        assert not {one.container_id for one in made} & {one.container_id for one in fresh}
        assert Repeated(here, ECHO).succeed(2) == (StartKind.PREWARMED, "got 2\n")


# -- containers that are paused and unpaused from outside


def test_an_idle_container_is_visibly_paused(tmp_path: Path) -> None:
    """`docker ps` shows an idle container as paused, each time, and its processes are frozen."""
    with resting(tmp_path, "paused") as (here, function, container):
        for number in range(2):
            assert engine_state(here, container.container_id) == "paused"
            assert all(one.cgroup.is_frozen() for one in here.owner.stock.all())
            assert function.succeed(number) == (StartKind.WARM, f"got {number}\n")
            await_states(here, "paused")


def test_a_container_that_is_paused_by_hand_while_idle_is_used_again(tmp_path: Path) -> None:
    """Somebody's `docker pause` costs no request, and the pool's own pauses hold afterwards."""
    with resting(tmp_path, "idle") as (here, function, container):
        pause(here, container.container_id)
        assert function.succeed(2) == (StartKind.WARM, "got 2\n")
        await_states(here, "idle")
    with resting(tmp_path / "soon", "paused") as (here, function, container):
        unpause(here, container.container_id)
        pause(here, container.container_id)
        assert function.succeed(2) == (StartKind.WARM, "got 2\n")
        await_states(here, "paused")
        wait_until(lambda: all(one.cgroup.is_frozen() for one in here.owner.stock.all()), "it is frozen")


def test_the_pool_pauses_a_container_that_the_engine_believes_paused(tmp_path: Path) -> None:
    """Paused by hand, used, and idle again: the engine's "paused" is outdated then, and the container is frozen again."""
    with open_rig(tmp_path, pause_after_s=1.0) as here:
        function = Repeated(here, ECHO)
        function.succeed(1)
        (container,) = await_states(here, "idle")
        pause(here, container.container_id)
        assert function.succeed(2) == (StartKind.WARM, "got 2\n")
        await_states(here, "paused")
        assert all(one.cgroup.is_frozen() for one in here.owner.stock.all())


def test_a_container_that_is_unpaused_by_hand_is_used_again(tmp_path: Path) -> None:
    """Somebody's `docker unpause` costs no request either, and the container is paused again and can be removed."""
    with resting(tmp_path, "paused") as (here, function, container):
        unpause(here, container.container_id)
        assert function.succeed(2) == (StartKind.WARM, "got 2\n")
        await_states(here, "paused")
        assert function.succeed(3) == (StartKind.WARM, "got 3\n")
        await_states(here, "paused")


def test_a_container_that_is_paused_by_hand_during_a_run_is_lost(tmp_path: Path) -> None:
    """The function is not blamed for the time of the pause: the run may be retried."""
    with open_rig(tmp_path) as here:
        function = Repeated(here, SLOW)
        with pytest.raises(ContainerLostError, match="paused by somebody else") as lost:
            function.run(timeout_s=1.5, during=once_it_runs(lambda container: pause(here, container.id)))
        assert lost.value.retryable
        assert function.succeed(0) == (StartKind.COLD, "done\n")


# -- a host whose cgroups cannot be used


@pytest.fixture
def read_only_cgroups(tmp_path: Path) -> Iterator[Path]:
    """The host's cgroup tree, mounted read-only."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    subprocess.run(["mount", "--rbind", "/sys/fs/cgroup", folder], check=True)
    try:
        subprocess.run(["mount", "--make-rprivate", folder], check=True)
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in [mount for mount in mounts if Path(mount).is_relative_to(folder)]:
            subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--recursive", folder], check=True)


def test_cgroups_that_cannot_be_written(tmp_path: Path, read_only_cgroups: Path) -> None:
    """Pauses go through the engine. The memory peak of a warm run is unknown, and is not invented."""
    with open_rig(tmp_path / "rig", cgroup_dir=read_only_cgroups, **PAUSED_SOON) as here:
        function = Repeated(here, ECHO)
        first = function.run(1)
        assert first.usage.peak_memory_bytes
        for number in (2, 3):
            (container,) = await_states(here, "paused")
            assert engine_state(here, container.container_id) == "paused"
            run = function.run(number)
            assert (run.container.start_kind, run.out) == (StartKind.WARM, f"got {number}\n")
            assert run.usage.peak_memory_bytes is None
            assert run.usage.cpu_ns
        slow = Repeated(here, SLOW)
        slow.run(timeout_s=0.5)
        assert slow.outcome is Outcome.TIMED_OUT


def test_cgroups_that_do_not_exist(tmp_path: Path) -> None:
    """Runs are correct without accounts, also one that runs out of memory; usage is unknown then."""
    with open_rig(tmp_path, cgroup_dir=tmp_path / "none", **PAUSED_SOON) as here:
        function = Repeated(here, ECHO)
        function.succeed(1)
        (container,) = await_states(here, "paused")
        assert engine_state(here, container.container_id) == "paused"
        run = function.run(2)
        assert (run.container.start_kind, run.out) == (StartKind.WARM, "got 2\n")
        assert (run.usage.peak_memory_bytes, run.usage.cpu_ns, run.usage.oom_kills) == (None, None, None)
        hungry = Repeated(here, "x = bytearray(200 << 20)", memoryMb=64)
        hungry.run()
        assert hungry.outcome is Outcome.OUT_OF_MEMORY


# -- an image that changes


@pytest.fixture
def own_image(rig: Rig, unique: str) -> Iterator[Callable[[int], str]]:
    """An image name that stands for another image with each number."""
    name = f"nanogrid-test-{unique}"
    api = rig.engine.api
    base = api.create_container(PYTHON_IMAGE, ["true"], name=f"{name}-base")["Id"]
    ids: set[str] = set()

    def tag(number: int) -> str:
        ids.add(api.commit(base, name, "1", changes=[f"LABEL number={number}"])["Id"])
        return f"{name}:1"

    yield tag
    rig.engine.remove(base)
    for image in ids:
        with contextlib.suppress(ImageNotFound):  # the test may have removed it
            api.remove_image(image, force=True)


@pytest.mark.parametrize("retained", [False, True], ids=["paused", "retained"])
def test_an_image_that_is_updated_under_the_pool(
    tmp_path: Path, own_image: Callable[[int], str], retained: bool
) -> None:
    """Warm and prewarmed containers of the old image are not used again, and are removed without a request."""
    name = own_image(1)
    changes: dict[str, Any] = {"python_image": name, "prewarmed": {"python": 1}, "image_check_s": 0.2}
    ready, idle = ("prewarmed", "idle") if retained else ("paused", "paused")
    with open_rig(tmp_path, **changes, **(NEVER_PAUSED if retained else {})) as here:
        here.owner.prewarm(["python"])
        await_states(here, ready)
        function = Repeated(here, ECHO)
        assert function.succeed(1) == (StartKind.PREWARMED, "got 1\n")
        old = {one.container_id for one in await_states(here, ready, idle)}
        own_image(2)
        wait_until(
            lambda: len(shown(here)) == 1 and not old & {one.container_id for one in shown(here)},
            "all old ones are removed",
        )
        await_states(here, ready)
        assert function.succeed(2) == (StartKind.PREWARMED, "got 2\n")
        now = here.engine.image_id(name)
        (used,) = [one for one in shown(here) if one.function_id]
        assert here.engine.api.inspect_container(used.container_id)["Image"] == now


def test_an_image_that_is_removed_under_the_pool(tmp_path: Path, own_image: Callable[[int], str]) -> None:
    """Without the image no container can start, and the error says why. With it, runs succeed again."""
    name = own_image(1)
    with open_rig(tmp_path, python_image=name, image_check_s=0.2, idle_timeout_s=0) as here:
        function = Repeated(here, ECHO)
        function.succeed(1)
        here.engine.api.remove_image(name, force=True)

        advice = f"image {name} is not on this host .* deploy/images/build"
        wait_until(lambda: re.search(advice, str(refusal(function))), "the missing image is named, with what to do")
        own_image(1)
        assert function.succeed(3) == (StartKind.COLD, "got 3\n")


def refusal(function: Repeated) -> str | None:
    """Why the function cannot run now; None if it can."""
    try:
        function.run(0)
    except NanoGridError as error:
        return str(error) if error.retryable else None
    return None


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB and 200 files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200,mode=755", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill_bytes(disk: Path) -> list[Path]:
    """Fill the disk to the last byte. Returns the files to remove."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return [filler]


def fill_files(disk: Path) -> list[Path]:
    """Use up all inodes. Returns the files to remove."""
    fillers = [disk / f"filler-{number}" for number in range(200)]
    with suppress(OSError):
        for filler in fillers:
            filler.touch()
    return fillers


@pytest.mark.parametrize(
    ("fill", "files", "runtime"),
    [(fill_bytes, {"run.sh": "echo got $(cat)"}, "sh"), (fill_files, {"main.py": ECHO}, "python")],
    ids=["bytes", "files"],
)
def test_a_full_disk(small_disk: Path, fill: Callable[[Path], list[Path]], files: dict[str, str], runtime: str) -> None:
    """A start without room fails with an error that may be retried, leaves nothing, and succeeds once there is room.

    A warm run needs no disk: its payload and its result are in memory. A launched run has them on disk.
    """
    with open_rig(small_disk) as here:
        function, other = Repeated(here, ECHO), Repeated(here, files, runtime)
        function.succeed(1)
        await_states(here, "paused")
        fillers = fill(small_disk)
        for _ in range(2):
            with pytest.raises(
                ContainerStartError, match=r"could not be (created|written|laid out).*No space left"
            ) as full:
                other.run("x" * 20_000)
            assert full.value.retryable
            fill(small_disk)  # the failed start has freed its room
        text = "x" * 20_000
        assert function.succeed(text) == (StartKind.WARM, f'got "{text}"\n')
        for filler in fillers:
            filler.unlink(missing_ok=True)
        assert function.succeed(3) == (StartKind.WARM, "got 3\n")
        assert other.succeed(4) == (StartKind.COLD, "got 4\n")
        await_states(here, *["paused"] * (2 if runtime == "python" else 1))


# -- bounds


def test_more_functions_than_containers(tmp_path: Path) -> None:
    """The function that was used longest ago loses its container; every function gets its own result."""
    with open_rig(tmp_path, pool_containers=2, **NEVER_PAUSED) as here:
        functions = [Repeated(here, f"import sys; print({name!r}, sys.stdin.read())") for name in "abcd"]
        for turn in range(2):
            for name, function in zip("abcd", functions, strict=True):
                assert function.succeed(turn) == (StartKind.COLD, f"{name} {turn}\n")
                assert len(here.containers()) <= 3  # the evicted one may not be removed yet
        assert functions[3].succeed(2) == (StartKind.WARM, "d 2\n")
        assert functions[2].succeed(2) == (StartKind.WARM, "c 2\n")
        await_states(here, "idle", "idle")  # a container that is being cleaned is not evicted
        assert functions[0].succeed(2) == (StartKind.COLD, "a 2\n")
        assert functions[2].succeed(3) == (StartKind.WARM, "c 3\n")
        wait_until(lambda: len(here.containers()) == 2, "the evicted ones are gone")


def test_less_memory_than_functions_ask_for(tmp_path: Path) -> None:
    """Idle containers count with what they use, running ones with their limit: then others are evicted, or wait."""
    with open_rig(tmp_path, pool_memory_mb=300, **PAUSED_SOON) as here:
        small = [Repeated(here, ECHO, memoryMb=200) for _ in range(3)]
        for number, function in enumerate(small):
            assert function.succeed(number)[1] == f"got {number}\n"
        assert len(await_states(here, "paused", "paused", "paused")) == 3
        large = Repeated(here, ECHO, memoryMb=299)
        assert large.succeed(9) == (StartKind.COLD, "got 9\n")
        await_states(here, "paused")
        with (
            small[0].hold(),
            pytest.raises(PoolExhaustedError, match=r"no container came free within 0\.2 s: .*300 MiB"),
        ):
            small[1].run(wait_s=0.2)
        assert large.succeed(10)[1] == "got 10\n"


def test_a_request_that_is_larger_than_the_pool_runs_alone(tmp_path: Path) -> None:
    """A request that can never fit does not wait forever: it runs while nothing else does."""
    with open_rig(tmp_path, pool_memory_mb=100) as here:
        Repeated(here, ECHO, memoryMb=64).succeed(1)
        assert Repeated(here, ECHO, memoryMb=256).succeed(2) == (StartKind.COLD, "got 2\n")


def test_a_function_with_one_container_runs_one_at_a_time(tmp_path: Path) -> None:
    """With `function_containers` = 1 the second request waits for the first one's container and gets it warm."""
    with open_rig(tmp_path, function_containers=1) as here:
        function = Repeated(here, ECHO)
        found: list[tuple[StartKind, str]] = []
        with ExitStack() as held:
            held.enter_context(function.hold())
            second = threading.Thread(target=lambda: found.append(function.succeed(2)))
            second.start()
            wait_until(lambda: here.owner.stock.waiting() == 1, "the second request waits")
            assert states(here) == ["leased"]
            # A container that is given back without a run is destroyed, so the second request runs in a new one.
        second.join()
        assert found == [(StartKind.COLD, "got 2\n")]
        threads = [threading.Thread(target=lambda: found.append(function.succeed(3))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[1:] == [(StartKind.WARM, "got 3\n")] * 3
        assert len(here.containers()) == 1


def test_waiting_when_all_containers_are_in_use(tmp_path: Path) -> None:
    """A request that waits in vain gets a retryable error that says why; one that waits long enough gets a container."""
    with open_rig(tmp_path, pool_containers=1) as here:
        holder, waiter = Repeated(here, SLOW), Repeated(here, ECHO)
        with holder.hold(), pytest.raises(PoolExhaustedError) as exhausted:
            waiter.run(1, wait_s=0.2)
        assert exhausted.value.retryable
        assert str(exhausted.value) == (
            "no container came free within 0.2 s: 1 containers with 512 MiB are in use, and the pool may have 1 with "
            f"{here.owner.stock.bounds.memory_mb} MiB"
        )
        running = threading.Thread(target=holder.succeed, args=(0.5,))
        running.start()
        wait_until(lambda: states(here) == ["leased"], "the only container is in use")
        assert waiter.succeed(2) == (StartKind.COLD, "got 2\n")
        running.join()


def test_a_request_that_is_given_up_while_it_waits_leaves_no_trace(tmp_path: Path) -> None:
    """A child that dies in the queue leaves it: the next one gets its turn."""
    with open_rig(tmp_path, pool_containers=1) as here:
        holder, waiter = Repeated(here, SLOW), Repeated(here, ECHO)
        with holder.hold():
            child = os.fork()
            if child == 0:
                waiter.run(1)
                os._exit(0)
            wait_until(lambda: here.owner.stock.waiting() == 1, "the child waits")
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            wait_until(lambda: here.owner.stock.waiting() == 0, "no request waits", 5)
        assert waiter.succeed(2) == (StartKind.COLD, "got 2\n")


def test_an_idle_container_expires(tmp_path: Path) -> None:
    """After `idle_timeout_s` without a request the container is removed, although it is paused."""
    with open_rig(tmp_path, idle_timeout_s=0.5, **PAUSED_SOON) as here:
        function = Repeated(here, ECHO)
        function.succeed(1)
        wait_until(lambda: here.containers() == [], "it is gone", 10)
        assert function.succeed(2) == (StartKind.COLD, "got 2\n")


def test_no_container_is_reused_without_idle_time(tmp_path: Path) -> None:
    """With `idle_timeout_s` = 0 every run gets a new container, however soon the next one comes."""
    with open_rig(tmp_path, idle_timeout_s=0) as here:
        function = Repeated(here, ECHO)
        used = {function.run(number).container.id for number in range(3)}
        assert len(used) == 3
        wait_until(lambda: here.containers() == [], "all are gone", 10)


def test_limits_follow_the_request(tmp_path: Path) -> None:
    """A reused container has the limits of the current request, higher or lower, in the engine and in the kernel."""
    with open_rig(tmp_path) as here:
        function = Repeated(here, ECHO)
        limits = function.wanted.limits
        for number, (memory_mb, cpus) in enumerate([(512, 1.0), (128, 0.5), (700, 2.0), (64, 2.0)]):
            run = function.run(number, limits=replace(limits, memory_mb=memory_mb, cpus=cpus))
            assert run.out == f"got {number}\n"
            assert run.container.start_kind is (StartKind.WARM if number else StartKind.COLD)
            config = here.engine.api.inspect_container(run.container.id)["HostConfig"]
            assert (config["Memory"], config["MemorySwap"]) == (memory_mb * MIB, memory_mb * MIB)
            assert config["NanoCpus"] == int(cpus * 1e9)
            (pooled,) = here.owner.stock.all()
            assert pooled.cgroup.memory is not None
            file = pooled.cgroup.memory / "memory.limit_in_bytes"
            file = file if file.exists() else pooled.cgroup.memory / "memory.max"
            assert int(file.read_text()) == memory_mb * MIB


def test_a_lower_limit_applies_to_the_run(tmp_path: Path) -> None:
    """A run with less memory than the previous one runs out of memory."""
    hungry = "import sys; x = bytearray(int(sys.stdin.read()) << 20); print(len(x) >> 20)"
    with open_rig(tmp_path) as here:
        function = Repeated(here, hungry)
        small = replace(function.wanted.limits, memory_mb=64)
        assert function.succeed(200) == (StartKind.COLD, "200\n")
        run = function.run(200, limits=small)
        assert (run.container.start_kind, function.outcome) == (StartKind.WARM, Outcome.OUT_OF_MEMORY)
        assert function.succeed(200) == (StartKind.COLD, "200\n")


# -- the owner's end


def test_an_owner_that_stops_leaves_nothing(tmp_path: Path) -> None:
    """Paused, idle, prewarmed and leased containers are all removed; the current run may be retried."""
    lost: list[BaseException] = []

    def run(function: Repeated) -> None:
        try:
            function.run()
        except NanoGridError as error:
            lost.append(error)

    with open_rig(tmp_path, prewarmed={"python": 1}, pause_after_s=1.0) as here:
        here.owner.prewarm(["python"])
        running = threading.Thread(target=run, args=(Repeated(here, SLOW),))
        running.start()
        Repeated(here, ECHO).succeed(1)
        await_states(here, "leased", "paused", "paused")
        Repeated(here, ECHO).succeed(2)
        assert len(here.containers()) >= 3
    running.join()
    (error,) = lost
    assert isinstance(error, NanoGridError)
    assert error.retryable


def test_an_owner_that_stops_removes_leaked_containers(tmp_path: Path) -> None:
    """A container that the engine failed to remove is found by its labels and removed when its owner stops."""
    with open_rig(tmp_path) as here:
        Repeated(here, ECHO).succeed(1)
        (known,) = here.engine.find({DATA_LABEL: data_id(here.settings.data_dir)})
        # The sweep of the start is over, and the next one is far away.
        here.engine.create("left", {"Image": PYTHON_IMAGE, "Labels": {**known.labels, NUMBER_LABEL: "1000"}})


OWNER = """
import threading, time, sys
from pathlib import Path
from tests.integration.test_pool_faults import ECHO, SLOW
from tests.support.repeated import Repeated, await_states, first_pid, once_it_runs
from tests.support.rig import rig
with rig(Path(sys.argv[1]), prewarmed={"python": 1}, pause_after_s=float(sys.argv[2])) as here:
    here.owner.prewarm(["python"])
    rest = "paused" if sys.argv[2] == "0" else "prewarmed"
    await_states(here, rest)
    slow = Repeated(here, SLOW)
    up = threading.Event()
    threading.Thread(target=slow.run, kwargs={"during": once_it_runs(lambda _: up.set()), "timeout_s": 600}).start()
    up.wait()
    Repeated(here, ECHO).succeed(1)
    rest = ("paused", "paused") if sys.argv[2] == "0" else ("idle", "prewarmed")
    made = await_states(here, "leased", *rest)
    print(*[first_pid(here, one.container_id) for one in made if one.state != "paused"], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("pause_after_s", ["0", "600"])
def test_functions_end_with_an_owner_that_is_killed(tmp_path: Path, pause_after_s: str) -> None:
    """After kill -9 of a worker its runners end their runs, and the next owner removes every container, paused or not."""
    source = [sys.executable, "-c", OWNER, str(tmp_path), pause_after_s]
    with subprocess.Popen(source, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pids = [int(word) for word in worker.stdout.readline().split()]
        worker.kill()
    assert pids
    wait_until(lambda: not any(map(is_alive, pids)), "the containers that were not paused have ended", 10)
    with open_rig(tmp_path) as here:
        wait_until(lambda: here.containers() == [], "the dead owner's containers are gone")
        assert Repeated(here, ECHO).succeed(1) == (StartKind.COLD, "got 1\n")
