"""The engine's end and return under a pool, with a second, real dockerd that the tests may end as they like."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from docker import APIClient

from nanogrid.errors import ContainerError, NanoGridError
from nanogrid.result import StartKind
from tests.support.repeated import Repeated, await_states, engine_state, once_it_runs, shown
from tests.support.rig import CPP_IMAGE, PYTHON_IMAGE, SHELL_IMAGE, Rig
from tests.support.rig import rig as open_rig
from tests.support.second_engine import SecondEngine
from tests.support.services import wait_until

# An engine of its own with a containerd of its own, ended hard: a machine that does three other things makes it slow.
# docker-py drops a socket that could not connect, as each does while the engine is away.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::ResourceWarning")]

ECHO = "import sys; print('got', sys.stdin.read())"
SLOW = (
    "import os, sys, time\nopen(os.environ['NANOGRID_RESULT'], 'w').write('1')\n"
    "time.sleep(float(sys.stdin.read() or 600))\nprint('done')"
)
LIVE_RESTORE = ["--live-restore"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondEngine]:
    """A second engine that has the Python image, under all the names that a rig asks for."""
    second = SecondEngine(tmp_path_factory.mktemp("engine"))
    started = second.start()
    assert started.returncode == 0, started.stderr
    try:
        with closing(APIClient()) as first, closing(APIClient(base_url=second.url)) as api:
            api.load_image(first.get_image(PYTHON_IMAGE))  # type: ignore[no-untyped-call]
            for name in (CPP_IMAGE, SHELL_IMAGE):
                repository, _, tag = name.partition(":")
                api.tag(PYTHON_IMAGE, repository, tag)
        yield second
    finally:
        if second.is_up:
            second.kill()


@pytest.fixture(autouse=True)
def dropped_sockets() -> Iterator[None]:
    """Have the sockets collected by the test that dropped them."""
    yield
    gc.collect()


@pytest.fixture
def restart(engine: SecondEngine) -> Callable[[list[str]], None]:
    """Start the engine, that was ended or not, with these options."""

    def start_again(options: list[str]) -> None:
        if engine.is_up:
            engine.stop()
        started = engine.start(dockerd=options)
        assert started.returncode == 0, started.stderr

    return start_again


def rest(here: Rig, function: Repeated) -> str:
    """Have a warm container of the function, paused; its id."""
    function.succeed(0)
    wait_until(lambda: any(one.state == "paused" for one in shown(here)), "the container is paused")
    return next(one.container_id for one in shown(here) if one.function_id)


def refused(here: Rig) -> None:
    """Without an engine a function that needs a new container is refused with a sentence, and may be tried again."""
    with pytest.raises(ContainerError, match="Docker could not") as error:
        Repeated(here, ECHO).run(1)
    assert error.value.retryable


def test_an_engine_that_is_restarted_and_keeps_its_containers(
    engine: SecondEngine, restart: Callable[[list[str]], None], tmp_path: Path
) -> None:
    """With live-restore warm containers are used while the engine is away and afterwards, and can be removed then."""
    restart(LIVE_RESTORE)
    with open_rig(tmp_path, docker_url=engine.url) as here:
        function = Repeated(here, ECHO)
        container = rest(here, function)
        engine.stop()
        assert function.succeed(1) == (StartKind.WARM, "got 1\n")
        refused(here)
        await_states(here, "paused")
        restart(LIVE_RESTORE)
        assert function.succeed(2) == (StartKind.WARM, "got 2\n")
        await_states(here, "paused")
        assert [one.container_id for one in shown(here)] == [container]
        assert Repeated(here, ECHO).succeed(3) == (StartKind.COLD, "got 3\n")


def test_a_run_that_outlives_its_engine(
    engine: SecondEngine, restart: Callable[[list[str]], None], tmp_path: Path
) -> None:
    """With live-restore a run goes on without the engine, and its result counts."""
    restart(LIVE_RESTORE)
    # Its container is not to be paused before the engine is back, however long that takes: pausing needs the engine.
    with open_rig(tmp_path, docker_url=engine.url, pause_after_s=600.0) as here:
        function = Repeated(here, SLOW)
        gone = threading.Event()

        def stop(_: object) -> None:
            engine.stop()
            gone.set()

        assert function.succeed(4, during=once_it_runs(stop)) == (StartKind.COLD, "done\n")
        assert gone.wait(60)
        restart(LIVE_RESTORE)
        assert function.succeed(0) == (StartKind.WARM, "done\n")


def test_an_engine_that_is_restarted_and_ends_its_containers(
    engine: SecondEngine, restart: Callable[[list[str]], None], tmp_path: Path
) -> None:
    """Without live-restore all containers are lost: the run under way may be tried again, the next lease is cold and right."""
    restart([])
    with open_rig(tmp_path, docker_url=engine.url, prewarmed={"python": 1}, reap_interval_s=1) as here:
        here.owner.prewarm(["python"])
        function, slow = Repeated(here, ECHO), Repeated(here, SLOW)
        rest(here, function)
        await_states(here, "paused", "paused")
        lost: list[NanoGridError] = []
        up = threading.Event()

        def run() -> None:
            try:
                slow.run(during=once_it_runs(lambda _: up.set()))
            except NanoGridError as error:
                lost.append(error)

        running = threading.Thread(target=run)
        running.start()
        assert up.wait(60)
        engine.stop()
        running.join()
        (error,) = lost
        assert isinstance(error, ContainerError)
        assert error.retryable
        refused(here)
        restart([])
        assert function.retried(1) == "got 1\n"
        assert function.succeed(2) == (StartKind.WARM, "got 2\n")
        wait_until(
            lambda: "paused" in [one.state for one in shown(here) if not one.function_id], "one is prewarmed", 60
        )
        wait_until(lambda: len(here.containers()) == len(shown(here)), "the lost ones are gone", 60)


@pytest.mark.parametrize("options", [[], LIVE_RESTORE], ids=["plain", "live-restore"])
def test_an_engine_that_is_killed(
    engine: SecondEngine, restart: Callable[[list[str]], None], tmp_path: Path, options: list[str]
) -> None:
    """After kill -9 of dockerd and containerd, and their start, requests are answered right and nothing is left."""
    restart(options)
    with open_rig(tmp_path, docker_url=engine.url, reap_interval_s=1) as here:
        function = Repeated(here, ECHO)
        rest(here, function)
        engine.kill()
        assert function.succeed(1) == (StartKind.WARM, "got 1\n")
        refused(here)
        restart(options)
        assert function.retried(2) == "got 2\n"
        assert function.succeed(3) == (StartKind.WARM, "got 3\n")
        (container,) = await_states(here, "paused")
        assert engine_state(here, container.container_id) == "paused"
        wait_until(lambda: len(here.containers()) == 1, "what was lost is gone", 60)
