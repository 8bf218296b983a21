"""What owner and children say to each other: one JSON object per line over a unix stream socket.

child  {"lease": {...LeaseRequest, without env and command...}, "with": ["slate"]}
owner  {"container": {...LeasedContainer...}, "with": ["runner", "spare", "token"]}
       or {"error": {"kind": CLASS, "message": TEXT}}
child  {"end": "keep"}                             clean the container for the next run; nothing is answered
child  {"end": "destroy"}                          destroy it; `End` says how its first process had ended
owner  {"ended": {...End...}} or {"error": {...}}
child  {"end": "done"}                             what is left of it can go; nothing is answered

`with` names the descriptors beside a message. `runner` is the connection to the first process, which a launched container does not
have, and `spare` the one to the process in it that waits for a request. With a `token` the child may keep the container after its run and say nothing (see `hand`; the `slate` comes with the first
request of a connection). When it asks for another lease, the one that it had in hand is its own no more.

A connection carries one lease after the other. When it closes, a container that runs something goes. In place of a
lease anybody on the host who may read the data folder can ask {"show": true} and gets {"pool": [...]} (see `snapshot`).
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nanogrid import errors
from nanogrid.execution.container.cgroup import Cgroup
from nanogrid.execution.container.hardening import Confinement
from nanogrid.result import StartKind

RUNNER, SPARE, TOKEN, SLATE = "runner", "spare", "token", "slate"
PYTHON = re.compile(r"(?:^|/)python[0-9.]*$")


def is_python(command: Sequence[str]) -> bool:
    """Whether a command is a python program, by its name and its script's."""
    return len(command) > 1 and bool(PYTHON.search(command[0])) and command[1].endswith(".py")


@dataclass(frozen=True)
class LeaseRequest:
    """What a child wants to run.

    `key` names the code (and its layers): a container that has run it before is reused for nothing else. `code_dir` and
    `packages_dir` are trees on this host; `wait_s` is how long the request can wait for a container.
    """

    request_id: str
    function_id: str
    image: str
    command: tuple[str, ...]
    env: dict[str, str]
    code_dir: str
    limits: Confinement
    key: str = ""
    packages_dir: str | None = None
    wait_s: float = 60.0

    def with_memory(self, memory_mb: int) -> LeaseRequest:
        """The same, with another memory limit."""
        return replace(self, limits=replace(self.limits, memory_mb=memory_mb))

    def to_json(self) -> dict[str, Any]:
        """What the owner needs of it."""
        return {
            "request_id": self.request_id,
            "function_id": self.function_id,
            "image": self.image,
            "interpreter": self.command[0] if self.in_process else "python3",
            "compiles": not self.in_process,
            "key": self.key or self.code_dir,
            "limits": vars(self.limits),
            "wait_s": self.wait_s,
        }

    @property
    def terms(self) -> tuple[Any, ...]:
        """What must be the same for a container to serve another request without its owner."""
        return self.function_id, self.image, self.key or self.code_dir, self.limits

    @property
    def in_process(self) -> bool:
        """Whether the command is a python program, which a warm interpreter may run itself."""
        return is_python(self.command)


@dataclass(frozen=True)
class LeasedContainer:
    """A container that is ready for one run.

    `start` is cold, prewarmed or warm, `slot` its folder, `cgroup` where its accounts and its freezer lie. `has_runner`: its
    image has Python, so that it can be used again.
    """

    id: str
    name: str
    start: StartKind
    cgroup: Cgroup
    slot: Path
    has_runner: bool

    def to_json(self) -> dict[str, Any]:
        """As it travels."""
        return {
            "id": self.id,
            "name": self.name,
            "start": self.start.value,
            "cgroup": [None if folder is None else str(folder) for folder in vars(self.cgroup).values()],
            "slot": str(self.slot),
            "has_runner": self.has_runner,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LeasedContainer:
        """Read it from the line."""
        return cls(
            data["id"],
            data["name"],
            StartKind(data["start"]),
            _cgroup(*data["cgroup"]),
            Path(data["slot"]),
            data["has_runner"],
        )


@lru_cache(maxsize=256)
def _cgroup(*folders: str | None) -> Cgroup:
    """Warm containers come again and again."""
    return Cgroup(*(None if folder is None else Path(folder) for folder in folders))


def error_to_json(error: errors.NanoGridError) -> dict[str, str]:
    """An error as an object that the other side can raise again."""
    return {"kind": type(error).__name__, "message": str(error)}


def error_from_json(data: dict[str, str]) -> errors.NanoGridError:
    """The error that the other side met."""
    kind: type[errors.NanoGridError] = getattr(errors, data["kind"], errors.ContainerError)
    return kind(data["message"])


class Line:
    """A connection that carries one JSON object per line, some with a descriptor beside them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._descriptors: list[int] = []

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one object. Raises OSError where the other side is gone."""
        data = json.dumps(message).encode() + b"\n"
        if descriptors:
            sent = socket.send_fds(self._connection, [data], descriptors)
            data = data[sent:]
        if data:
            self._connection.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next object, or None when the other side is gone."""
        while b"\n" not in self._buffer:
            try:
                chunk, descriptors, _, _ = socket.recv_fds(self._connection, 65_536, 4)
            except OSError:
                return None
            self._descriptors += descriptors
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def take_descriptor(self) -> int:
        """The descriptor that came with a message; it belongs to the caller."""
        descriptor = self._descriptors.pop(0)
        os.set_inheritable(descriptor, False)
        return descriptor

    def is_open(self) -> bool:
        """Whether the other side is still there."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def hang_up(self) -> None:
        """Make the thread that waits in `receive` return, from another thread."""
        with suppress(OSError):  # the other side was faster
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._connection.close()


def connect(address: Path, timeout_s: float | None = None) -> Line:
    """A connection to the owner that listens at `address`. Raises OSError where none does.

    With `timeout_s`, an owner that stands still counts as one that has hung up.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        with short_path(address) as short:
            connection.connect(short)
    except OSError:
        connection.close()
        raise
    return Line(connection)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """An address for a unix socket at a path of any length (the kernel takes no more than 107 bytes)."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
