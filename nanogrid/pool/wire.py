"""What owner and children say to each other: one JSON object per line over a unix stream socket.

owner  {"runDir": PATH}                            at once, after the connection is made
child  {"lease": {...LeaseRequest...}}             start a container in that run folder
owner  {"container": {...LeasedContainer...}} or {"error": {"kind": CLASS, "message": TEXT}}
child  {"end": true}                               destroy the container; `End` says how its first process had ended
owner  {"ended": {...End...}}

The lease ends, and the run folder goes, when the connection closes; a container that is still there goes with it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogrid import errors
from nanogrid.container.hardening import Confinement


@dataclass(frozen=True)
class LeaseRequest:
    """What a child wants to run."""

    request_id: str
    function_id: str
    image: str
    command: tuple[str, ...]
    env: dict[str, str]
    code_dir: str
    limits: Confinement

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LeaseRequest:
        """Read it from the line."""
        return cls(**{**data, "command": tuple(data["command"]), "limits": Confinement(**data["limits"])})


@dataclass(frozen=True)
class LeasedContainer:
    """A started container. `pid` is its first process on the host."""

    id: str
    name: str
    pid: int


def error_to_json(error: errors.NanoGridError) -> dict[str, str]:
    """An error as an object that the other side can raise again."""
    return {"kind": type(error).__name__, "message": str(error)}


def error_from_json(data: dict[str, str]) -> errors.NanoGridError:
    """The error that the other side met."""
    kind: type[errors.NanoGridError] = getattr(errors, data["kind"], errors.ContainerError)
    return kind(data["message"])


class Line:
    """A connection that carries one JSON object per line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """Send one object. Raises OSError where the other side is gone."""
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next object, or None when the other side is gone."""
        try:
            line = self._reader.readline()
        except ConnectionError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self._connection.close()


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """An address for a unix socket at a path of any length (the kernel takes no more than 107 bytes)."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
