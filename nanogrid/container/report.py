"""What a run gives: why it ended, what it wrote, what it used. The same for every kind of container."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from nanogrid.container.cgroup import Usage


class Ended(Enum):
    """Why the loop ended."""

    EXITED = auto()
    """The command ended by itself, and all it left behind has been ended."""
    TIMED_OUT = auto()
    OUTPUT_LIMIT = auto()
    LOST = auto()
    """The container's first process is gone, and did not say that the command had ended."""


@dataclass
class Stream:
    """The kept first bytes of one output stream."""

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
    """What happened in a container. Durations in milliseconds, usage of this run alone."""

    ended: Ended
    exit_code: int | None
    stdout: Stream
    stderr: Stream
    duration_ms: float
    usage: Usage
