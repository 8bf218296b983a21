"""The messages between owner and children: one JSON object per line over a unix stream socket.

child  {"lease": {...LeaseRequest.to_json()...}, "with": ["page"]}
owner  {"container": {...LeasedContainer...}, "with": ["runner", "spare", "token"]}
       or {"error": {"kind": CLASS, "message": TEXT}}
child  {"end": "keep"}                             clean the container for the next run; no answer
child  {"end": "destroy"}                          destroy it; the answer says how its first process ended
owner  {"ended": {...ExitStatus...}} or {"error": {...}}
child  {"end": "done"}                             remove the container; no answer

`with` names the descriptors that are sent with a message. `runner` is the connection to the container's first process, which
launched containers do not have. `spare` is the connection to the process that waits for the next run. With a `token` the child may
retain the container after its run without a message (see `retained`); the child sends the shared `page` with its first request on
a connection. A new lease request gives up the retained container.

A connection carries one lease after another. When it closes, the owner destroys a container that runs something. Any user of the
host who may read the data folder can send {"show": true} in place of a lease, and receives {"pool": [...]} (see `snapshot`).
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

RUNNER, SPARE, TOKEN, PAGE = "runner", "spare", "token", "page"
PYTHON = re.compile(r"(?:^|/)python[0-9.]*$")


def is_python(command: Sequence[str]) -> bool:
    """Whether a command is a python program, judging by the names of the interpreter and the script."""
    return len(command) > 1 and bool(PYTHON.search(command[0])) and command[1].endswith(".py")


@dataclass(frozen=True)
class LeaseRequest:
    """What a child wants to run.

    `key` names the code (and its layers): a container that has run it is reused for nothing else. `code_dir` and
    `packages_dir` are folders of this host; `wait_s` is how long the request can wait for a container.
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
        """The same request with another memory limit."""
        return replace(self, limits=replace(self.limits, memory_mb=memory_mb))

    def to_json(self) -> dict[str, Any]:
        """The fields that the owner needs."""
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
        """What must be equal for a container to serve another request without its owner."""
        return self.function_id, self.image, self.key or self.code_dir, self.limits

    @property
    def in_process(self) -> bool:
        """Whether the command is a python program, which the runner's own interpreter can run."""
        return is_python(self.command)


@dataclass(frozen=True)
class LeasedContainer:
    """A container that is ready for one run.

    `start` is cold, prewarmed or warm, `slot` is the container's folder, `cgroup` holds its accounts and its freezer. `has_runner`:
    the image has Python, so that the container can be used again.
    """

    id: str
    name: str
    start: StartKind
    cgroup: Cgroup
    slot: Path
    has_runner: bool

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
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
        """Read the fields that `to_json` wrote."""
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
    """Cached: the same warm containers are leased again and again."""
    return Cgroup(*(None if folder is None else Path(folder) for folder in folders))


def error_to_json(error: errors.NanoGridError) -> dict[str, str]:
    """An error as JSON from which the other side can raise it again."""
    return {"kind": type(error).__name__, "message": str(error)}


def error_from_json(data: dict[str, str]) -> errors.NanoGridError:
    """The error that the other side has sent."""
    kind: type[errors.NanoGridError] = getattr(errors, data["kind"], errors.ContainerError)
    return kind(data["message"])


class Line:
    """A connection that carries one JSON object per line, some of them with descriptors."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._descriptors: list[int] = []

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one object. Raises OSError if the other side is gone."""
        data = json.dumps(message).encode() + b"\n"
        if descriptors:
            sent = socket.send_fds(self._connection, [data], descriptors)
            data = data[sent:]
        if data:
            self._connection.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next object; None if the other side is gone."""
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
        """The next descriptor that came with a message. It belongs to the caller."""
        descriptor = self._descriptors.pop(0)
        os.set_inheritable(descriptor, False)
        return descriptor

    def is_open(self) -> bool:
        """Whether the other side is still connected."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def hang_up(self) -> None:
        """Make a thread that waits in `receive` return. Called from another thread."""
        with suppress(OSError):  # the other side has hung up first
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._connection.close()


def connect(address: Path, timeout_s: float | None = None) -> Line:
    """A connection to the owner that listens at `address`. Raises OSError if none does.

    With `timeout_s`, an owner that does not answer in time counts as one that has hung up.
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
    """An address for a unix socket at a path of any length (the kernel's limit is 107 bytes)."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
