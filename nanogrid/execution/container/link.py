"""The host's end of the connection to the runner, the first process of a warm container.

The rule: messages from the container are short ASCII text, parsed with suspicion. Requests to it are marshalled, which the
runner can read without another import. `nanogrid/execution/runner` is the other end.

    host → spare    {"argv", "env", "in_process", "compiler_cache"} with the payload, stdout, stderr
    runner → host   hello VERSION · ready, with a connection to the spare · ended STATUS HOW STARTED_NS ENDED_NS LEFT, with the result's file if there is one ·
                    unclean WORDS · broken WORDS

After `hello` and `ready`, each run results in `ended` and then `ready`, or in `unclean` or `broken` if there will be no next run.
The first process never reads anything from the host. The spare reads the request, on a connection for this one request, on which
the host never listens. The first process only notices when the host closes its sending side: then it kills the run, reports it
like any other, and ends the container.
"""

from __future__ import annotations

import array
import marshal
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanogrid.errors import ContainerLostError, ContainerStartError

PACKET_BYTES = 65_536
"""Larger messages are sent as a memory file, with a packet that announces it."""

AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
PEEK_AT_ONCE = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
CHECK_EVERY_S = 0.25
MOST_DESCRIPTORS = 4
DESCRIPTORS_BYTES = socket.CMSG_LEN(MOST_DESCRIPTORS * array.array("i").itemsize)
MOST_DIGITS = 20


@dataclass(frozen=True)
class Hello:
    """The runner is up. `version` is its Python version, such as (3, 9)."""

    version: tuple[int, int]


@dataclass(frozen=True)
class Ready:
    """The container is ready for the next run."""


@dataclass(frozen=True)
class RunEnded:
    """A run has ended and all its processes are gone. Times are CLOCK_MONOTONIC in nanoseconds; `how` is python or exec.

    `result` is a descriptor of the result's file, which the receiver must close; -1 if there is none.
    """

    exit_code: int
    how: str
    started_ns: int
    ended_ns: int
    killed: int
    result: int = -1


@dataclass(frozen=True)
class Unfit:
    """There will be no next run: something was left behind, or could not be created."""

    word: str
    reason: str


Message = Hello | Ready | RunEnded | Unfit


class Link:
    """One connection. Not thread-safe. Raises ContainerLostError when the runner is gone."""

    def __init__(self, connection: socket.socket, spare: socket.socket | None = None) -> None:
        self._connection = connection
        self._spare = spare

    @classmethod
    def of(cls, connection: int, spare: int) -> Link:
        """The link that another process had, from its `descriptors`."""
        # With family and type given, Python need not ask the kernel.
        return cls(*(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, number) for number in (connection, spare)))

    def descriptors(self) -> tuple[int, int]:
        """The descriptors of the connection and of the one to the waiting spare. Raises ContainerLostError if none waits."""
        if self._spare is None:
            raise ContainerLostError("no process of the container waits for a request")
        return self._connection.fileno(), self._spare.fileno()

    def release_spare(self) -> None:
        """Close this process's connection to the waiting spare. Another process, which has received it, sends the request."""
        self._use_spare(None)

    def fileno(self) -> int:
        """The descriptor, for a poll."""
        return self._connection.fileno()

    def peer_pid(self) -> int:
        """The runner's pid as this process sees it; 0 if it is not visible."""
        credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def is_alive(self) -> bool:
        """Whether the runner's end is open and no message is waiting."""
        try:
            self._connection.recv(1, PEEK_AT_ONCE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # the end of the stream, or an unexpected message

    def has_word(self) -> bool:
        """Whether a message, or the end of the stream, is waiting. Consumes nothing."""
        return _is_readable(self._connection, 0)

    def is_cut(self) -> bool:
        """Whether the runner's end is closed, even if messages are still unread."""
        poll = select.poll()
        try:
            poll.register(self._connection, 0)
        except (OSError, ValueError):  # closed at this end
            return True
        return bool(poll.poll(0))

    def send_run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        descriptors: Sequence[int],
        *,
        in_process: bool,
        compiler_cache: bool,
    ) -> None:
        """Ask the spare for a run with these three descriptors: the payload's, stdout and stderr. A spare accepts one request."""
        message = {
            "argv": list(argv),
            "env": dict(env),
            "in_process": in_process,
            "compiler_cache": compiler_cache,
        }
        data = marshal.dumps(message, 2)
        if len(data) <= PACKET_BYTES:
            self._send(data, descriptors)
            return
        file = os.memfd_create("request", os.MFD_CLOEXEC)
        try:
            os.pwrite(file, data, 0)
            self._send(b"F", [*descriptors, file])
        finally:
            os.close(file)

    def send_kill(self) -> None:
        """Ask the runner to kill the current run and end the container. No request can follow."""
        self._use_spare(None)
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ContainerLostError(f"the runner of the container is gone: {error}") from error

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, or None if none arrives in time."""
        if timeout_s > 0 and not _is_readable(self._connection, timeout_s):
            return None
        try:
            packet, descriptors = _received(self._connection)
        except BlockingIOError:
            return None
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            raise ContainerLostError("the runner of the container is gone")
        try:
            message = parse(packet)
            if isinstance(message, RunEnded) and descriptors:
                message = replace(message, result=descriptors.pop())
            if isinstance(message, Ready) and descriptors:
                self._use_spare(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptors[-1]))
                descriptors.pop()
        except OSError as error:
            raise ContainerLostError(
                f"the runner of the container sent something that is not a connection: {error}"
            ) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return message

    def close(self) -> None:
        """Close this end. Once no process holds this end, the runner ends itself and its container."""
        self._use_spare(None)
        self._connection.close()

    def _use_spare(self, spare: socket.socket | None) -> None:
        """Make this the spare that gets the next request."""
        if self._spare is not None:
            self._spare.close()
        self._spare = spare

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        if self._spare is None:
            raise ContainerLostError("no process of the container waits for a request")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._spare.sendmsg([data], ancillary, socket.MSG_DONTWAIT)
        except OSError as error:
            raise ContainerLostError(f"the runner of the container does not listen: {error}") from error
        finally:
            self._use_spare(None)


def parse(packet: bytes) -> Message:
    """Parse a message of a runner. Raises ContainerLostError for any other text."""
    word, _, rest = packet.decode("ascii", "replace").partition(" ")
    try:
        match word:
            case "hello":
                major, minor = rest.split(".")[:2]
                return Hello((int(major), int(minor)))
            case "ready":
                return Ready()
            case "ended":
                status, how, *numbers = rest.split()
                started_ns, ended_ns, killed = map(_number, numbers)
                code = os.waitstatus_to_exitcode(_number(status))
                return RunEnded(code if code >= 0 else 128 - code, how, started_ns, ended_ns, killed)
            case "unclean" | "broken":
                return Unfit(word, " ".join(rest.split())[:500])
    except (ValueError, OverflowError):  # not a number, too many digits, or not a wait status
        pass
    raise ContainerLostError(f"the runner of the container sent {packet[:80]!r}, which is not a message")


def _number(text: str) -> int:
    """A number of at most 20 digits. Raises ValueError."""
    if not text.isdigit() or len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:80]!r} is not a number of at most {MOST_DIGITS} digits")
    return int(text)


def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A packet and its descriptors. `socket.recv_fds` would ignore the flags, and so cost calls to the kernel."""
    descriptors = array.array("i")
    packet, ancillary, _, _ = connection.recvmsg(PACKET_BYTES, DESCRIPTORS_BYTES, AT_ONCE)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return packet, descriptors.tolist()


def _is_readable(connection: socket.socket, timeout_s: float) -> bool:
    """Whether there is something to read within the time. Uses poll: select supports no descriptor above 1023."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


class RunnerListener:
    """Waits for a new container's runner at a path that only its first process can reach, and accepts one connection."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        path.chmod(0o600)
        self._socket.listen(1)

    def accept(self, timeout_s: float, is_running: Callable[[], bool]) -> Link:
        """Accept the runner's connection. Raises ContainerStartError if none arrives; `is_running` is called meanwhile."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if _is_readable(self._socket, CHECK_EVERY_S):
                connection, _ = self._socket.accept()
                return Link(connection)
            if not is_running():
                raise ContainerStartError("the container ended before its runner was up")
        raise ContainerStartError(f"the container's runner was not up within {timeout_s:g} s")

    def close(self) -> None:
        """Stop waiting and remove the path, so that nobody can connect any more."""
        self._socket.close()
        self._path.unlink(missing_ok=True)
