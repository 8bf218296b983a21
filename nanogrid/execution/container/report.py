"""The report of a run: why it ended, what it wrote, what it used. It is the same for every kind of container."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from enum import Enum, auto

from nanogrid.execution.container.cgroup import Usage


class EndReason(Enum):
    """Why a run ended."""

    EXITED = auto()
    """The command ended by itself, and all processes it left behind were killed."""
    TIMED_OUT = auto()
    OUTPUT_LIMIT = auto()
    LOST = auto()
    """The container's first process is gone, and did not report the end of the command."""


@dataclass
class Stream:
    """The first bytes of one output stream."""

    limit_bytes: int
    data: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    def add(self, chunk: bytes) -> None:
        """Keep what fits."""
        room = self.limit_bytes - len(self.data)
        self.data += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room


@dataclass(frozen=True)
class RunReport:
    """What happened in one run. `usage` covers this run alone."""

    ended: EndReason
    exit_code: int | None
    stdout: Stream
    stderr: Stream
    duration_ms: float
    usage: Usage
    result: Result = field(default_factory=lambda: Result(0, None))


@dataclass(frozen=True)
class Result:
    """The file named by NANOGRID_RESULT: its size, and its bytes unless there are too many."""

    size: int
    data: bytes | None

    @classmethod
    def read(cls, descriptor: int, limit_bytes: int) -> Result:
        """Read the file. No process is left in the container that could change it meanwhile."""
        status = os.fstat(descriptor)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            return cls(0, None)
        if not 0 < size <= limit_bytes:
            return cls(size, None)
        data = bytearray()
        while len(data) < size and (chunk := os.pread(descriptor, size - len(data), len(data))):
            data += chunk
        return cls(len(data), bytes(data))
