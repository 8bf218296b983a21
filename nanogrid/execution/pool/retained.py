"""What an owner and a child share of a container that the child retains between two runs: a token and a page of memory.

The rule: the side that has taken the token has the container. The token is free only while the container is at rest. The child
takes the token to start a run without asking; the owner takes it to get the container back. A token belongs to one lease:
a child that is too late finds no free token, no matter which child has the container by then.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from dataclasses import dataclass


class Token:
    """A kernel event counter that is 1 while the token is free. A read takes the token, and succeeds for exactly one reader.

    The descriptor is closed with the last reference, so that no thread polls a descriptor number that has been reused.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if descriptor is None else descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The descriptor, to be sent to the other side."""
        return self._descriptor

    def put(self) -> None:
        """Free the token: the container is at rest."""
        os.eventfd_write(self._descriptor, 1)

    def take(self) -> bool:
        """Take the token if it is free. The caller has the container then."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def is_free(self) -> bool:
        """Whether the token is free now. Another thread or process may take it before this returns."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))


class SharedPage:
    """A page of memory that both sides of a connection map. The owner writes `wanted_back` and clears the other fields at the start of a lease; the child writes those after that.

    It carries what must not cost a message: neither side waits for the other or wakes it.
    """

    _WANTED_BACK = struct.Struct("=?")
    _RAN = struct.Struct("=Id")
    _NAME = struct.Struct("=H254s")
    _RAN_AT, _NAME_AT = 8, 32

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, mmap.PAGESIZE)

    @staticmethod
    def new() -> int:
        """The descriptor of an empty page, for both sides. It belongs to the caller."""
        descriptor = os.memfd_create("shared-page", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return descriptor

    @property
    def wanted_back(self) -> bool:
        """Whether the owner wants the container back after the current run."""
        return bool(self._WANTED_BACK.unpack_from(self._page, 0)[0])

    @wanted_back.setter
    def wanted_back(self, wanted_back: bool) -> None:
        self._WANTED_BACK.pack_into(self._page, 0, wanted_back)

    @property
    def runs(self) -> int:
        """How many runs of this lease have ended."""
        return int(self._RAN.unpack_from(self._page, self._RAN_AT)[0])

    @property
    def since(self) -> float:
        """When the last run ended, by the host's monotonic clock."""
        return float(self._RAN.unpack_from(self._page, self._RAN_AT)[1])

    @property
    def request_id(self) -> str:
        """The request of the current or the last run."""
        length, name = self._NAME.unpack_from(self._page, self._NAME_AT)
        return bytes(name[:length]).decode("utf-8", "replace")

    def clear(self) -> None:
        """Start a lease. The owner calls this before the child learns of the lease."""
        self.wanted_back = False
        self._RAN.pack_into(self._page, self._RAN_AT, 0, 0.0)

    def begin(self, request_id: str) -> None:
        """Note that a run starts."""
        name = request_id.encode()[:254]
        self._NAME.pack_into(self._page, self._NAME_AT, len(name), name)

    def end(self) -> None:
        """Note that a run has ended."""
        self._RAN.pack_into(self._page, self._RAN_AT, self.runs + 1, time.monotonic())


@dataclass(frozen=True)
class Retention:
    """The token of one lease and the shared page of its connection. The object identifies the lease."""

    token: Token
    page: SharedPage

    def resting_since(self) -> float | None:
        """Since when the child retains the container at rest; None during a run."""
        return self.page.since if self.token.is_free() else None

    def runs_without_owner(self) -> int:
        """How many ended runs of this lease did not ask the owner: all but the first."""
        return max(0, self.page.runs - 1)
