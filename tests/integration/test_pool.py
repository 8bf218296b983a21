"""Leases, and what happens to containers when a child or a worker dies."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from nanogrid.errors import ContainerError, ContainerLostError, ImageUnavailableError, PoolExhaustedError
from nanogrid.execution.code.tree import remove_tree
from nanogrid.execution.container import labels
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.executor import classify
from nanogrid.execution.pool import identity
from nanogrid.execution.pool.child.lease import Container, Pool
from nanogrid.execution.pool.owner.reaper import reap
from nanogrid.execution.pool.owner.starter import container_name
from nanogrid.execution.pool.snapshot import snapshot
from nanogrid.result import StartKind
from nanogrid.settings import Settings
from tests.support.interleaved import before_every_line
from tests.support.repeated import Repeated
from tests.support.rig import PYTHON_IMAGE, Rig
from tests.support.rig import rig as open_rig
from tests.support.services import wait_until

DOCKER_SOCKET = "/var/run/docker.sock"
ANOTHER_USER = 12_345
SLEEP = {"main.py": "import time; print('up', flush=True); time.sleep(600)"}


def in_another_process(tmp_path: Path, program: str) -> subprocess.Popen[str]:
    """A process that opens a rig on `tmp_path`, runs `program` with the rig as `g`, and prints "ready"."""
    source = (
        "from tests.support.rig import rig\nfrom pathlib import Path\nimport time\n"
        f"with rig(Path({str(tmp_path)!r})) as g:\n    {program}\n    print('ready', flush=True)\n    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def run_as_another_user(folder: Path, runtime: str) -> list[str]:
    """The output of a function in a worker of another user, and the modes of that worker's folders."""
    files = {"main.py": "print('hello')", "run.sh": "echo hello"}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:  # a test that does not run as root is another user already
                os.setgroups([Path(DOCKER_SOCKET).stat().st_gid])
                os.setgid(ANOTHER_USER)
                os.setuid(ANOTHER_USER)
            with open_rig(folder) as here:
                said = here.run(files, runtime=runtime).out
                folders = (here.owner.folder.parent, here.owner.folder)
                modes = " ".join(oct(path.stat().st_mode & 0o777) for path in folders)
            os.write(writer, json.dumps([said, modes]).encode())
        except BaseException:  # noqa: BLE001  # the parent must see it, whatever it is
            os.write(writer, json.dumps(traceback.format_exc()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:  # noqa: PTH123  # a descriptor has no path
        told: list[str] = json.load(pipe)
    os.waitpid(child, 0)
    return told


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_container_whose_folder_has_changed_is_not_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever has changed it: the next run gets another container, and the log says why."""
    with open_rig(tmp_path, pause_after_s=0.0) as here:
        function = Repeated(here, "print('ran')")
        # During the lease: the folder is checked when the container is given back, maybe right after the run.
        first = function.run(during=lambda container: (container.folder.path / "new").touch())
        wait_until(lambda: first.container.name not in here.containers(), "the container is gone")
        assert function.run().container.id != first.container.id
        assert "'new' has appeared in its folder" in caplog.text


def test_a_child_that_dies_loses_its_container(rig: Rig, tmp_path: Path) -> None:
    """kill -9 of the child destroys the container and its folder, without any timer."""
    wanted, _ = rig.wanted(SLEEP)
    child = os.fork()
    if child == 0:
        with rig.pool.lease(wanted, None) as container:
            container.run(timeout_s=600)
        os._exit(0)
    wait_until(lambda: rig.containers_of(wanted.request_id), "the container exists")
    (name,) = rig.containers_of(wanted.request_id)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: name not in rig.containers(), "the container is gone", 5)
    slot = rig.owner.address.parent / name.rpartition("-")[2]
    wait_until(lambda: not slot.exists(), "its folder is gone")


def test_the_next_start_removes_what_a_killed_worker_has_left(tmp_path: Path) -> None:
    """After kill -9 of an owner, the next owner of the same data folder removes its containers, folders and lock."""
    worker = in_another_process(
        tmp_path,
        "lease = g.pool.lease(g.wanted({'main.py': 'import time; time.sleep(600)'})[0], None); lease.__enter__()",
    )
    data_dir = tmp_path / "data"
    dead = next(iter(identity.known_owners(data_dir)))
    end(worker)
    with open_rig(tmp_path) as here:
        wait_until(lambda: dead not in list(identity.known_owners(data_dir)), "the dead owner is forgotten")
        assert here.containers() == []


def test_a_living_workers_containers_are_left_alone(tmp_path: Path) -> None:
    """A reaper of the same data folder removes nothing of an owner that is alive."""
    worker = in_another_process(
        tmp_path,
        "lease = g.pool.lease(g.wanted({'main.py': 'import time; time.sleep(600)'})[0], None); lease.__enter__()",
    )
    try:
        with closing(Engine(Settings())) as engine:
            assert reap(tmp_path / "data", engine) == 0
            label = {labels.DATA_LABEL: labels.data_id(tmp_path / "data")}
            assert len(engine.find(label)) == 1
    finally:
        end(worker)
        with closing(Engine(Settings())) as engine:
            assert reap(tmp_path / "data", engine) == 1


def test_a_worker_that_starts_is_never_taken_for_dead(tmp_path: Path) -> None:
    """Another worker's reaper may run before any line of the start: folder and lock exist afterwards."""
    data_dir = tmp_path / "data"
    with closing(Engine(Settings())) as engine:
        for owner in before_every_line(
            lambda: identity.OwnerIdentity(data_dir), lambda: reap(data_dir, engine), identity
        ):
            with closing(owner):
                assert owner.runs.is_dir()
                assert not identity.is_dead(data_dir, owner.id)
            reap(data_dir, engine)
    assert list(identity.known_owners(data_dir)) == []


def test_concurrent_checks_all_find_a_dead_worker_dead(tmp_path: Path) -> None:
    """A check is not mistaken for the worker by the next check."""
    dead = identity.OwnerIdentity(tmp_path)
    dead.detach()
    others: list[bool] = []

    def ask() -> bool:
        return identity.is_dead(tmp_path, dead.id)

    assert all(before_every_line(ask, lambda: others.append(ask()), identity))
    assert set(others) == {True}


@pytest.mark.parametrize("owner", [None, "", ".", "..", "../owners", "/owners", "a//b", "builds/../../owners"])
def test_a_label_that_names_no_worker_removes_no_folder(rig: Rig, owner: str | None) -> None:
    """Such a container is left alone, and so is everything that a path made of its label would lead to."""
    names = {labels.DATA_LABEL: labels.data_id(rig.settings.data_dir)}
    names |= {} if owner is None else {labels.OWNER_LABEL: owner}
    made = rig.engine.create(f"nanogrid-test-label-{uuid.uuid4().hex[:8]}", {"Image": PYTHON_IMAGE, "Labels": names})
    try:
        before = sorted(rig.settings.data_dir.rglob("*"))
        assert reap(rig.settings.data_dir, rig.engine) == 0
        assert sorted(rig.settings.data_dir.rglob("*")) == before
    finally:
        rig.engine.remove(made)


def test_other_users_cannot_see_slots(tmp_path: Path) -> None:
    """A worker's folder and the folder of all workers are closed, also if an older version left them open."""
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o711)
    before = os.umask(0)
    try:
        owner = identity.OwnerIdentity(tmp_path)
    finally:
        os.umask(before)
    with closing(owner):
        assert [path.stat().st_mode & 0o777 for path in (runs, owner.runs)] == [0o700, 0o700]


@pytest.mark.parametrize("runtime", ["python", "sh"])
def test_a_worker_that_is_not_root_runs_functions_from_closed_folders(runtime: str) -> None:
    """The engine mounts the slots of a worker that is only in the engine's group, although other users may not enter them."""
    folder = Path(tempfile.mkdtemp(prefix="nanogrid-"))  # pytest's own folders are closed to other users
    try:
        if os.geteuid() == 0:
            os.chown(folder, ANOTHER_USER, ANOTHER_USER)
        assert run_as_another_user(folder, runtime) == ["hello\n", "0o700 0o700"]
    finally:
        remove_tree(folder)


def test_another_data_folders_containers_are_left_alone(tmp_path: Path) -> None:
    """A reaper cannot judge owners of another data folder, so it removes nothing of theirs, dead or alive."""
    worker = in_another_process(
        tmp_path / "theirs", "lease = g.pool.lease(g.wanted({'main.py': 'pass'})[0], None); lease.__enter__()"
    )
    end(worker)
    with open_rig(tmp_path / "ours") as here:
        assert reap(tmp_path / "ours" / "data", here.engine, keep=here.owner.id) == 0
        label = {labels.DATA_LABEL: labels.data_id(tmp_path / "theirs" / "data")}
        assert len(here.engine.find(label)) == 1
        assert reap(tmp_path / "theirs" / "data", here.engine) == 1


def test_a_container_that_was_removed_by_hand_is_lost(rig: Rig) -> None:
    """If somebody removes the container during a run, the error is NanoGrid's, and retryable."""

    def remove_by_hand(container: Container) -> None:
        threading.Timer(1.0, rig.engine.remove, [container.id]).start()

    run = rig.run("import time; time.sleep(600)", during=remove_by_hand, timeoutMs=60_000)
    with pytest.raises(ContainerLostError):
        classify(run.report, run.container)


def test_a_missing_image_is_an_error_that_says_what_to_do(rig: Rig) -> None:
    """The error of a missing image that may not be pulled names the image and what to do."""
    wanted, _ = rig.wanted({"main.py": "pass"})
    missing = type(wanted)(**{**vars(wanted), "image": "nanogrid/no-such:1"})
    with (
        pytest.raises(ImageUnavailableError, match=r"nanogrid/no-such:1 .*deploy/images/build"),
        rig.pool.lease(missing, None),
    ):
        pass


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # docker-py drops the socket that could not connect
def test_an_engine_that_is_away_is_a_retryable_error(tmp_path: Path) -> None:
    """Without an engine a lease raises, and does not hang."""
    sentence, retryable = failure_of(Engine(Settings(docker_url=f"unix://{tmp_path}/none.sock")))
    gc.collect()
    assert "Docker could not connect" in sentence
    assert retryable


def failure_of(engine: Engine) -> tuple[str, bool]:
    try:
        engine.version()
    except ContainerError as error:
        return str(error), error.retryable
    raise AssertionError("the engine answered")


def test_without_an_owner_there_is_no_lease(rig: Rig, tmp_path: Path) -> None:
    """A child whose owner is gone gets an error."""
    wanted, _ = rig.wanted({"main.py": "pass"})
    with pytest.raises(PoolExhaustedError), Pool(tmp_path / "no.sock", rig.settings).lease(wanted, None):
        pass


@pytest.mark.parametrize(
    ("request_id", "name"),
    [
        ("abc-1", "nanogrid-abc-1"),
        ("a/b:c", "nanogrid-a-b-c-"),
        ("x" * 200, "nanogrid-" + "x" * 60 + "-"),
    ],
)
def test_container_names_are_safe_and_short(request_id: str, name: str) -> None:
    """A request id becomes a name that Docker accepts; different ids have different names."""
    made = container_name(request_id)
    assert made.startswith(name)
    assert len(made) <= 80
    assert made != container_name(request_id + "y")


def test_a_prewarmed_container_is_named_after_its_function(tmp_path: Path) -> None:
    """A function's container has the function's name, also if it was started before the function was known."""
    with open_rig(tmp_path, pause_after_s=0.05) as here:
        here.owner.prewarm(["python"])
        wait_until(
            lambda: [shown.state for shown in snapshot(here.settings.data_dir)] == ["paused"], "one is prewarmed"
        )
        run = here.run("print('up')")
        assert run.container.start_kind is StartKind.PREWARMED
        assert run.container.name.startswith("nanogrid-prewarmed-")
        wait_until(lambda: any(name.startswith("nanogrid-f-") for name in here.containers()), "it has another name")


def test_two_runs_of_one_request_id_do_not_collide(rig: Rig) -> None:
    """Each run has its own container."""
    wanted, timeout_s = rig.wanted({"main.py": "print(1)"})
    with rig.pool.lease(wanted, None) as first, rig.pool.lease(wanted, None) as second:
        assert first.id != second.id
        assert second.run(timeout_s=timeout_s).exit_code == 0


@pytest.mark.parametrize(("memory_mb", "fits"), [(128, 2), (48, 5)])
def test_the_pools_memory_holds_as_many_containers_as_the_limits_in_force_allow(
    tmp_path: Path, memory_mb: int, fits: int
) -> None:
    """A lowered limit allows more containers: 256 MiB hold two runs of 128 MiB, or five of 48."""
    with open_rig(tmp_path, pool_memory_mb=256) as rig, ExitStack() as held:
        wanted, _ = rig.wanted({"main.py": "print('hello')"}, memoryMb=128)
        lowered = wanted.with_memory(memory_mb)
        for _ in range(fits):
            held.enter_context(rig.pool.lease(lowered, None))
        assert {shown.memory_limit_mb for shown in snapshot(rig.settings.data_dir)} == {memory_mb}
        with pytest.raises(PoolExhaustedError), rig.pool.lease(replace(lowered, wait_s=0.0), None):
            pass
