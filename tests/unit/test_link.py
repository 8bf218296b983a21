"""The host's end of the connection to a runner, over a real pair of sockets; the test is the runner."""

from __future__ import annotations

import array
import fcntl
import marshal
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.errors import ContainerLostError, ContainerStartError
from nanogrid.execution.container.link import PACKET_BYTES, Hello, Link, Ready, RunEnded, RunnerListener, Unfit, parse
from tests.support.services import wait_until

LONG_S = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[Link, socket.socket]]:
    """The host's end, and the runner's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(ours)
    with closing(link), closing(theirs):
        theirs.settimeout(LONG_S)
        yield link, theirs


@pytest.fixture
def asked(pair: tuple[Link, socket.socket]) -> Iterator[tuple[Link, socket.socket]]:
    """The host's end, and the one on which the spare, which is ready, is asked for a run."""
    link, runner = pair
    spare = ready(link, runner)
    with closing(spare):
        spare.settimeout(LONG_S)
        yield link, spare


def ready(link: Link, runner: socket.socket) -> socket.socket:
    """Have the runner say so, and the host hear it; the spare's end."""
    host, spare = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(host):
        socket.send_fds(runner, [b"ready"], [host.fileno()])
    assert link.receive(LONG_S) == Ready()
    return spare


def take(runner: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A message as the runner reads it, and the descriptors that belong to it."""
    packet, descriptors, flags, _ = socket.recv_fds(runner, PACKET_BYTES, 8)
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    if packet == b"F":
        file = descriptors.pop()
        with open(file, "rb") as opened:  # noqa: PTH123  # a descriptor has no path
            opened.seek(0)
            packet = opened.read()
    message: dict[str, Any] = marshal.loads(packet)
    return message, descriptors


def open_files() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# -- what the runner says


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"hello 3.9.2", Hello((3, 9))),
        (b"hello 3.13.0rc1", Hello((3, 13))),
        (b"ready", Ready()),
        (b"ended 0 python 5 9 0", RunEnded(0, "python", 5, 9, 0)),
        (b"ended 768 exec 1792000000000000001 1792000000000000009 3", RunEnded(3, "exec", 1792000000000000001, 1792000000000000009, 3)),
        (b"ended 9 python 5 9 0", RunEnded(137, "python", 5, 9, 0)),
        (b"ended 139 python 5 9 0", RunEnded(139, "python", 5, 9, 0)),
        (b"unclean a file of root in /tmp", Unfit("unclean", "a file of root in /tmp")),
        (b"broken no\nspace \t left", Unfit("broken", "no space left")),
        (b"broken", Unfit("broken", "")),
    ],
)  # fmt: skip
def test_each_word_is_understood(packet: bytes, message: object) -> None:
    """A wait status becomes a shell's exit code: a signal's number with 128 on top, with or without a core."""
    assert parse(packet) == message


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"hi",
        b"HELLO 3.9",
        b"hello",
        b"hello 3",
        b"hello x.y",
        b"ended",
        b"ended 0 python 5 9",
        b"ended 0 python 5 9 0 0",
        b"ended nul python 5 9 0",
        b"ended 0 python 5.5 9 0",
        b"ended -1 python 5 9 0",
        b"ended 127 python 5 9 0",
        b"ended 99999999999999999999 python 5 9 0",
        b"ended 0 python 5 " + b"9" * 5000 + b" 0",
        b"ended 0 python 5 " + b"9" * 400 + b" 0",
        b"\x80\x04\x95",
        marshal.dumps({"do": "run"}),
        b"\xff" * 1000,
    ],
)
def test_anything_else_means_nothing(packet: bytes) -> None:
    """It is the end of the container, told in one short sentence, and never another error."""
    with pytest.raises(ContainerLostError, match="which is not a message") as raised:
        parse(packet)
    assert len(str(raised.value)) < 500


@given(st.binary(max_size=200) | st.builds(b"ended ".__add__, st.binary(max_size=60)))
def test_no_bytes_do_any_harm(packet: bytes) -> None:
    """Whatever a container sends is a message of ours, or a ContainerLostError."""
    with suppress(ContainerLostError):
        assert isinstance(parse(packet), (Hello, Ready, RunEnded, Unfit))


@given(st.integers(-(2**80), 2**80), st.integers(-(2**80), 2**80), st.integers(-(2**80), 2**80))
def test_no_numbers_do_any_harm(status: int, started_ns: int, ended_ns: int) -> None:
    """An exit code is that of a process, and times can be computed with."""
    with suppress(ContainerLostError):
        ended = parse(f"ended {status} python {started_ns} {ended_ns} 0".encode())
        assert isinstance(ended, RunEnded)
        assert 0 <= ended.exit_code <= 255
        assert (ended.ended_ns - ended.started_ns) / 1e6 is not None


def test_reasons_are_short() -> None:
    """However much a runner has to say, one line of 500 characters is kept."""
    message = parse(b"unclean " + b"x y\n" * 10_000)
    assert isinstance(message, Unfit)
    assert len(message.reason) <= 500
    assert "\n" not in message.reason


def test_messages_come_one_by_one(pair: tuple[Link, socket.socket]) -> None:
    """Two that lie there together are two."""
    link, runner = pair
    runner.send(b"hello 3.11.2")
    runner.send(b"ready")
    assert [link.receive(LONG_S), link.receive(LONG_S)] == [Hello((3, 11)), Ready()]


def test_no_message_is_none_in_time(pair: tuple[Link, socket.socket]) -> None:
    """A limit of zero only looks, a negative one too: a deadline may have passed."""
    link, _ = pair
    for timeout_s in (0, -5):
        assert link.receive(timeout_s) is None
    began = time.monotonic()
    assert link.receive(0.05) is None
    assert 0.04 <= time.monotonic() - began < LONG_S


def test_a_runner_that_is_gone_is_told(pair: tuple[Link, socket.socket]) -> None:
    """What it said before is still heard; then hearing and speaking both say that it is gone."""
    link, runner = pair
    runner.send(b"ready")
    runner.close()
    assert link.receive(0) == Ready()
    with pytest.raises(ContainerLostError, match="the runner of the container is gone"):
        link.receive(LONG_S)
    with pytest.raises(ContainerLostError, match="no process of the container waits"):
        link.send_run([], {}, [], in_process=True, compiler_cache=False)


def test_a_descriptor_from_a_container_is_not_taken(pair: tuple[Link, socket.socket]) -> None:
    """It cannot fill the worker's table of open files: the one way to the spare is kept, and goes when the next one comes."""
    link, runner = pair
    before = open_files()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as spare:
        for _ in range(3):
            socket.send_fds(runner, [b"ready"], [0, 1, spare.fileno()])
            assert link.receive(LONG_S) == Ready()
            assert not os.get_inheritable(link.descriptors()[1])
            socket.send_fds(runner, [b"hello 3.9.0"], [0, 1, 2])
            assert link.receive(LONG_S) == Hello((3, 9))
    socket.send_fds(runner, [b"ready"], [0, 1, 2])
    with pytest.raises(ContainerLostError, match="not a connection"):
        link.receive(LONG_S)
    assert open_files() == before + 1


def test_a_spare_is_asked_once(asked: tuple[Link, socket.socket]) -> None:
    """When it has been asked nobody can ask it for more, also not by accident; and what it says there is not heard."""
    link, spare = asked
    link.send_run([], {}, [], in_process=True, compiler_cache=False)
    assert take(spare)[0]["argv"] == []
    with pytest.raises(BrokenPipeError):
        spare.send(b"ended 0 python 1 2 0")
    assert link.receive(0) is None
    with pytest.raises(ContainerLostError, match="no process of the container waits"):
        link.send_run([], {}, [], in_process=True, compiler_cache=False)
    with pytest.raises(ContainerLostError, match="no process of the container waits"):
        link.descriptors()


def test_a_spare_that_is_gone_is_told(asked: tuple[Link, socket.socket]) -> None:
    """The request goes nowhere."""
    link, spare = asked
    spare.close()
    with pytest.raises(ContainerLostError, match="does not listen"):
        link.send_run([], {}, [], in_process=True, compiler_cache=False)


def test_a_link_is_handed_on(pair: tuple[Link, socket.socket]) -> None:
    """Another process hears the runner and asks the spare with copies of both descriptors."""
    link, runner = pair
    with closing(ready(link, runner)) as spare, closing(Link.of(*map(os.dup, link.descriptors()))) as other:
        other.send_run(["a"], {}, [], in_process=True, compiler_cache=False)
        assert take(spare)[0]["argv"] == ["a"]
        runner.send(b"broken")
        assert isinstance(other.receive(LONG_S), Unfit)


def test_a_living_runner_that_is_silent_is_alive(pair: tuple[Link, socket.socket]) -> None:
    """Looking takes nothing away, and a closed end is seen."""
    link, runner = pair
    assert link.is_alive()
    runner.close()
    assert not link.is_alive()


def test_a_runner_that_speaks_out_of_turn_is_not_to_be_used(pair: tuple[Link, socket.socket]) -> None:
    """A container that waits has nothing to say: the next run would take its word for an answer."""
    link, runner = pair
    runner.send(b"broken what ran before is still there")
    assert not link.is_alive()
    assert isinstance(link.receive(0), Unfit)


def test_the_peer_is_known_by_its_pid(pair: tuple[Link, socket.socket]) -> None:
    """It is what the kernel says, not what the runner says."""
    link, _ = pair
    assert link.peer_pid() == os.getpid()


# -- what the host says


def test_a_run_is_one_packet_with_three_descriptors(asked: tuple[Link, socket.socket]) -> None:
    """The runner gets command, environment and the very files that the host has open, in their order."""
    link, spare = asked
    pipes = [os.pipe() for _ in range(3)]
    try:
        link.send_run(
            ("python", "main.py"),
            {"A": "ü\udcff"},
            [writing for _, writing in pipes],
            in_process=True,
            compiler_cache=False,
        )
        message, descriptors = take(spare)
        assert message == {
            "argv": ["python", "main.py"],
            "env": {"A": "ü\udcff"},
            "in_process": True,
            "compiler_cache": False,
        }
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, str(number).encode())
            os.close(descriptor)
        assert [os.read(reading, 10) for reading, _ in pipes] == [b"0", b"1", b"2"]
    finally:
        for reading, writing in pipes:
            os.close(reading)
            os.close(writing)


@pytest.mark.parametrize("size", [PACKET_BYTES - 300, PACKET_BYTES, PACKET_BYTES * 40])
def test_a_request_of_any_size_arrives(asked: tuple[Link, socket.socket], size: int) -> None:
    """What fits in no packet travels in a memory file, after the three descriptors; the host keeps none of it open."""
    link, spare = asked
    before = open_files()
    env = {"LARGE": "x" * size}
    link.send_run(["python", "main.py"], env, [0, 1, 2], in_process=False, compiler_cache=True)
    assert open_files() == before - 1  # the spare's connection is used up
    message, descriptors = take(spare)
    assert (message["env"], message["compiler_cache"], len(descriptors)) == (env, True, 3)
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_kill_is_the_end_of_what_the_host_says(pair: tuple[Link, socket.socket]) -> None:
    """It needs nobody who reads; what the runner says afterwards is still heard."""
    link, runner = pair
    with closing(ready(link, runner)):
        link.send_kill()
        assert runner.recv(10) == b""
        runner.send(b"unclean")
        assert isinstance(link.receive(LONG_S), Unfit)
        with pytest.raises(ContainerLostError, match="no process of the container waits"):
            link.send_run([], {}, [], in_process=True, compiler_cache=False)


def test_a_result_comes_as_a_descriptor(pair: tuple[Link, socket.socket], tmp_path: Path) -> None:
    """Beside `ended` one descriptor is taken, and no child of this process inherits it."""
    link, runner = pair
    (tmp_path / "result").write_text("1")
    before = open_files()
    with (tmp_path / "result").open() as file:
        socket.send_fds(runner, [b"ended 0 python 1 2 0"], [0, file.fileno()])
    message = link.receive(LONG_S)
    assert isinstance(message, RunEnded)
    assert os.pread(message.result, 10, 0) == b"1"
    assert not os.get_inheritable(message.result)
    os.close(message.result)
    assert open_files() == before


def test_requests_are_read_by_every_python_that_a_runner_may_be(asked: tuple[Link, socket.socket]) -> None:
    """Marshal's version 2, which has had no change since Python 2.5: no references, no interning."""
    link, spare = asked
    link.send_run(["python", "python"], {"python": "python"}, [], in_process=True, compiler_cache=True)
    packet = spare.recv(PACKET_BYTES)
    assert packet == marshal.dumps(marshal.loads(packet), 2)


def test_closing_ends_the_runners_wait(pair: tuple[Link, socket.socket]) -> None:
    """A runner without a host reads the end, and ends itself; so does its spare."""
    link, runner = pair
    with closing(ready(link, runner)) as spare:
        link.close()
        assert (runner.recv(10), spare.recv(10)) == (b"", b"")


def test_a_worker_with_many_open_files_hears_its_runners() -> None:
    """Descriptors beyond 1023 work, where select() does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096) if hard < 0 or hard >= 4096 else hard, hard))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 2000)
        with closing(ours), closing(theirs), closing(Link(socket.socket(fileno=high))) as link:
            assert link.fileno() >= 1024
            assert link.receive(0) is None
            theirs.send(b"ready")
            assert link.receive(LONG_S) == Ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- the first connection


def connected(path: Path) -> socket.socket:
    """A runner that has found its socket."""
    runner = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        runner.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        runner.close()
        raise
    finally:
        os.close(folder)
    return runner


def test_a_runner_connects_once(tmp_path: Path) -> None:
    """Only root may reach the path; with the first connection taken it is closed, and the path is gone."""
    path = tmp_path / "control.sock"
    listener = RunnerListener(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(connected(path)) as runner:
        runner.send(b"hello 3.9.2")
        with closing(listener.accept(LONG_S, lambda: True)) as link:
            listener.close()
            assert link.receive(LONG_S) == Hello((3, 9))
            assert not path.exists()
            with pytest.raises(FileNotFoundError):
                connected(path)
    listener.close()


def test_the_path_may_be_of_any_length(tmp_path: Path) -> None:
    """A data folder deeper than the 107 bytes of a socket's address is no trouble."""
    folder = tmp_path / ("d" * 120) / ("e" * 120)
    folder.mkdir(parents=True)
    with (
        closing(RunnerListener(folder / "control.sock")) as listener,
        closing(connected(folder / "control.sock")),
        closing(listener.accept(LONG_S, lambda: True)) as link,
    ):
        assert link.is_alive()


def test_a_runner_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """The container may still be starting when the host begins to wait."""
    path = tmp_path / "control.sock"
    asked = threading.Event()
    runners: list[socket.socket] = []

    def late() -> None:
        wait_until(asked.is_set, "the host has looked after the container")
        runners.append(connected(path))

    def is_running() -> bool:
        asked.set()
        return True

    thread = threading.Thread(target=late)
    with closing(RunnerListener(path)) as listener:
        thread.start()
        with closing(listener.accept(LONG_S, is_running)):
            thread.join()
    runners[0].close()


def test_a_container_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    """Long before the time is up."""
    began = time.monotonic()
    with (
        closing(RunnerListener(tmp_path / "control.sock")) as listener,
        pytest.raises(ContainerStartError, match="ended before its runner was up"),
    ):
        listener.accept(600, lambda: False)
    assert time.monotonic() - began < LONG_S


def test_a_runner_that_does_not_come_is_an_error(tmp_path: Path) -> None:
    """The sentence says how long it was waited for."""
    with (
        closing(RunnerListener(tmp_path / "control.sock")) as listener,
        pytest.raises(ContainerStartError, match=r"not up within 0\.05 s"),
    ):
        listener.accept(0.05, lambda: True)


def test_descriptors_of_a_run_are_the_three_standard_streams_and_no_more(asked: tuple[Link, socket.socket]) -> None:
    """What the runner gets besides would be the host's, in the hands of a container."""
    link, spare = asked
    link.send_run(["python", "main.py"], {}, [0, 1, 2], in_process=True, compiler_cache=False)
    _, ancillary, _, _ = spare.recvmsg(PACKET_BYTES, 4096)
    received = array.array("i")
    for _, _, data in ancillary:
        received.frombytes(data)
    for descriptor in received:
        os.close(descriptor)
    assert len(received) == 3
