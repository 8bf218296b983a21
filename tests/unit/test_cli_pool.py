"""What `nanogrid pool` shows, without any container: sentences, tables, JSON and exit codes."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nanogrid.cli.pool import (
    COLORS,
    PoolSnapshot,
    human_age,
    memory_of,
    number_of,
    rendered,
    summary,
    take_snapshot,
    to_wire,
    without_containers,
)
from nanogrid.errors import ConfigurationError
from nanogrid.execution.pool.identity import OwnerIdentity
from nanogrid.execution.pool.protocol import Line, short_path
from nanogrid.execution.pool.snapshot import ContainerSnapshot
from nanogrid.execution.pool.states import State
from tests.support.command import ENTRY

MIB = 1024 * 1024


def shown(number: int = 1, **fields: Any) -> ContainerSnapshot:
    """One container of a worker."""
    base: dict[str, Any] = {
        "worker": "0123456789abcdef", "number": number, "name": f"nanogrid-thumbs-012345-{number}", "container_id": "c0ffee",
        "image": "image", "state": "idle", "function_id": "thumbs", "request_id": None, "age_s": 300.5, "in_state_s": 3.2,
        "runs": 7, "memory_limit_mb": 512, "memory_bytes": 12 * MIB,
    }  # fmt: skip
    return ContainerSnapshot(**{**base, **fields})


def printed(snapshot: PoolSnapshot, **options: bool) -> list[str]:
    """The lines on a wide terminal."""
    out = io.StringIO()
    Console(file=out, width=300).print(rendered(snapshot, Path("/data"), **options))
    return out.getvalue().splitlines()


def pool(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`nanogrid pool` as a process, with its streams in pipes."""
    environment = {**os.environ, "NANOGRID_DATA_DIR": str(data_dir)}
    return subprocess.run(
        [*ENTRY, "pool", *words], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@contextmanager
def answering(owner: OwnerIdentity, rows: list[dict[str, Any]]) -> Iterator[None]:
    """A fake worker that reports these containers over its socket."""
    listener = socket.socket(socket.AF_UNIX)
    with short_path(owner.runs / "owner.sock") as address:
        listener.bind(address)
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            line = Line(connection)
            assert line.receive() == {"show": True}
            line.send({"pool": rows, "pid": os.getpid()})
            line.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def row(**fields: Any) -> dict[str, Any]:
    """A container as its worker reports it."""
    described = vars(shown(**fields)).copy()
    del described["worker"]
    return described


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (3.2, "3 s"),
        (59.99, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (7300, "2 h"),
        (86_399, "23 h"),
        (200_000, "2 d"),
    ],
)
def test_ages_are_for_people(age_s: float, text: str) -> None:
    """Only the largest unit that is not zero."""
    assert human_age(age_s) == text


@pytest.mark.parametrize(
    ("memory_bytes", "text"), [(None, "? of 512 MiB"), (0, "0 of 512 MiB"), (12_900_000, "12 of 512 MiB")]
)
def test_memory_is_shown_with_its_limit(memory_bytes: int | None, text: str) -> None:
    """An unknown use is not zero."""
    assert memory_of(shown(memory_bytes=memory_bytes)) == text


def test_a_row_shows_the_whole_container() -> None:
    """Worker, name, state, function, request, ages, runs and memory, under headings that name them."""
    busy = shown(state="leased", request_id="r-1", age_s=7300, in_state_s=0.2)
    heading, line, _ = printed(PoolSnapshot([busy.worker], [busy]))
    assert heading.split() == ["worker", "container", "state", "function", "request", "age", "in", "state", "runs", "memory"]  # fmt: skip
    assert line.split() == ["012345", "nanogrid-thumbs-012345-1", "leased", "thumbs", "r-1", "2", "h", "0", "s", "7", "12", "of", "512", "MiB"]  # fmt: skip


def test_missing_values_stay_empty() -> None:
    """A prewarmed one has no function, an idle one no request."""
    snapshot = PoolSnapshot(["w"], [shown(state="prewarmed", function_id=None, runs=0)])
    assert printed(snapshot)[1].split() == ["012345", "nanogrid-thumbs-012345-1", "prewarmed", "5", "min", "3", "s", "0", "12", "of", "512", "MiB"]  # fmt: skip


def test_names_are_not_markup() -> None:
    """A name that looks like markup is shown as it is."""
    snapshot = PoolSnapshot(["w"], [shown(function_id="[red]f[/]", request_id="[/]")])
    assert "[red]f[/]  [/]" in printed(snapshot)[1]


def test_the_summary_counts_by_state() -> None:
    """In the order of a container's life, without states that no container has, and with the memory of all."""
    states = ["paused", "leased", "paused", "idle", "prewarmed"]
    held = [shown(number, state=state) for number, state in enumerate(states)]
    snapshot = PoolSnapshot(["w1", "w2"], [*held, shown(9, state="starting", memory_bytes=None)])
    text = "6 containers: 1 starting, 1 prewarmed, 1 leased, 1 idle, 2 paused · 60 MiB in use · 2 workers"
    assert summary(snapshot) == printed(snapshot)[-1] == printed(snapshot, summary_first=True)[0] == text


def test_singular_and_plural() -> None:
    """The noun follows the number."""
    assert [number_of(number, "worker") for number in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]
    assert summary(PoolSnapshot(["w"], [shown()])) == "1 container: 1 idle · 12 MiB in use · 1 worker"


def test_every_state_has_a_color() -> None:
    """No state of a container is missing from the summary."""
    assert set(COLORS) == {state.value for state in State} | {"paused"}


def test_nothing_to_show_is_a_sentence() -> None:
    """It distinguishes a worker without containers from no worker, and says what to do without one."""
    assert printed(PoolSnapshot(["w"], [])) == [without_containers(PoolSnapshot(["w"], []), Path("/data"))]
    assert without_containers(PoolSnapshot(["w"], []), Path("/data")) == "1 worker of /data without any container"
    sentence = without_containers(PoolSnapshot([], []), Path("/data"))
    assert sentence.startswith("no worker runs with the data folder /data: ")
    assert "nanogrid up --detach" in sentence
    assert "NANOGRID_DATA_DIR" in sentence


def test_json_is_camel_case() -> None:
    """As in all other messages; ages have their unit in the name."""
    assert to_wire(shown()) == {
        "worker": "0123456789abcdef", "number": 1, "name": "nanogrid-thumbs-012345-1", "containerId": "c0ffee",
        "image": "image", "state": "idle", "functionId": "thumbs", "requestId": None, "ageSeconds": 300.5,
        "inStateSeconds": 3.2, "runs": 7, "memoryLimitMb": 512, "memoryBytes": 12 * MIB,
    }  # fmt: skip


@pytest.mark.parametrize(("words", "stdout"), [((), ""), (("--json",), "[]\n")])
def test_no_worker_exits_with_3(tmp_path: Path, words: tuple[str, ...], stdout: str) -> None:
    """As `status` does; stdout holds an empty list with --json, else nothing, and no folder is created."""
    done = pool(tmp_path / "none", *words)
    assert (done.returncode, done.stdout) == (3, stdout)
    if words:
        assert done.stderr == ""
    else:
        assert done.stderr.startswith("no worker runs with the data folder ")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_has_died_is_no_worker(data_dir: Path) -> None:
    """What it left in the data folder does not count as a worker."""
    owner = OwnerIdentity(data_dir)
    with answering(owner, []):
        assert take_snapshot(data_dir).workers == [owner.id]
    runs = owner.runs
    owner.close()
    assert runs.exists()
    assert take_snapshot(data_dir) == PoolSnapshot([], [])
    assert pool(data_dir).returncode == 3


def test_an_empty_pool_is_no_failure(data_dir: Path) -> None:
    """A worker without containers is healthy."""
    owner = OwnerIdentity(data_dir)
    try:
        with answering(owner, []):
            done = pool(data_dir)
            assert (done.returncode, done.stdout) == (0, "")
            assert done.stderr == f"1 worker of {data_dir} without any container\n"
            assert pool(data_dir, "--json").stdout == "[]\n"
    finally:
        owner.close()


def test_containers_of_all_workers_are_shown(data_dir: Path) -> None:
    """By worker and number. In a pipe, long lines are not cut."""
    first, second = sorted((OwnerIdentity(data_dir), OwnerIdentity(data_dir)), key=lambda owner: owner.id)
    name = "f" * 200
    try:
        with (
            answering(first, [row(number=2), row(number=1, function_id=name)]),
            answering(second, [row(number=1, state="leased", request_id="r-1")]),
        ):
            done = pool(data_dir)
            assert (done.returncode, done.stderr) == (0, "")
            _, *rows, last = done.stdout.splitlines()
            assert [line.split()[:3] for line in rows] == [
                [first.id[:6], "nanogrid-thumbs-012345-1", "idle"],
                [first.id[:6], "nanogrid-thumbs-012345-2", "idle"],
                [second.id[:6], "nanogrid-thumbs-012345-1", "leased"],
            ]
            assert f" {name} " in rows[0]
            assert last == "3 containers: 1 leased, 2 idle · 36 MiB in use · 2 workers"
            told = json.loads(pool(data_dir, "--json").stdout)
            assert [(one["worker"], one["number"], one["requestId"]) for one in told] == [
                (first.id, 1, None),
                (first.id, 2, None),
                (second.id, 1, "r-1"),
            ]
    finally:
        first.close()
        second.close()


def test_another_users_workers_are_an_error(data_dir: Path) -> None:
    """A user who may not ask them gets an error, not an empty list."""
    owner = OwnerIdentity(data_dir)
    (data_dir / "owners" / f"{owner.id}.lock").chmod(0)
    child = os.fork()
    if child == 0:
        os.chdir(data_dir)  # before the change of user: other users may not enter the parent folders
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            take_snapshot(Path())
        except ConfigurationError as error:
            os._exit(0 if "belongs to another user: run this command as the user of" in str(error) else 1)
        os._exit(2)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        owner.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--live"], "needs a terminal"), (["--live", "--json"], "give one of them"), (["--jsno"], "No such option")],
)
def test_wrong_use_exits_with_2(tmp_path: Path, words: list[str], message: str) -> None:
    """--live refuses to write to a pipe."""
    done = pool(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_it_has_help() -> None:
    """Help needs no worker, no Docker and no settings, and is written to stdout."""
    done = subprocess.run([*ENTRY, "pool", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert "--live" in done.stdout
    assert done.stderr == ""
