"""What an owner and a child share of a container that the child keeps in hand between two runs: a token and a slate.

The rule: whoever has taken the token has the container, and nobody else has. It lies there only while the container rests. The
child takes it to begin a run, without asking; the owner takes it to have the container back. One token is for one lease:
a child that was too late finds none, whoever has the container by then.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from dataclasses import dataclass


class Token:
    """An event counter of the kernel that is 1 while the token lies there: a read takes it, and succeeds for exactly one.

    It is closed when nobody holds it any more, so that no thread looks at a descriptor that has become another one's.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if descriptor is None else descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The descriptor, to be sent to the other side."""
        return self._descriptor

    def put(self) -> None:
        """Lay it down: the container rests."""
        os.eventfd_write(self._descriptor, 1)

    def take(self) -> bool:
        """Whether it lay there; then it is the caller's now."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def lies(self) -> bool:
        """Whether it lies there now. It may be gone when this returns."""
        look = select.poll()
        look.register(self._descriptor, select.POLLIN)
        return bool(look.poll(0))


class Slate:
    """A page of memory that both sides of one connection see. The owner writes the first field, the child all others.

    It is for what must not cost a message: neither side waits for the other, or wakes it.
    """

    _WANTED = struct.Struct("=?")
    _RAN = struct.Struct("=Id")
    _NAME = struct.Struct("=H254s")
    _RAN_AT, _NAME_AT = 8, 32

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, mmap.PAGESIZE)

    @staticmethod
    def new() -> int:
        """A descriptor of an empty one, for both sides. It belongs to the caller."""
        descriptor = os.memfd_create("slate", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return descriptor

    @property
    def wanted(self) -> bool:
        """Whether the owner wants the container back when its run is over."""
        return bool(self._WANTED.unpack_from(self._page, 0)[0])

    @wanted.setter
    def wanted(self, wanted: bool) -> None:
        self._WANTED.pack_into(self._page, 0, wanted)

    @property
    def runs(self) -> int:
        """How many runs of this lease are over."""
        return int(self._RAN.unpack_from(self._page, self._RAN_AT)[0])

    @property
    def since(self) -> float:
        """When the last of them was over, by the host's monotonic clock."""
        return float(self._RAN.unpack_from(self._page, self._RAN_AT)[1])

    @property
    def request_id(self) -> str:
        """Whose run is under way, or was the last one."""
        length, name = self._NAME.unpack_from(self._page, self._NAME_AT)
        return bytes(name[:length]).decode("utf-8", "replace")

    def clear(self) -> None:
        """Begin a lease. Done by the owner before the child knows of it."""
        self.wanted = False
        self._RAN.pack_into(self._page, self._RAN_AT, 0, 0.0)

    def begin(self, request_id: str) -> None:
        """A run begins."""
        name = request_id.encode()[:254]
        self._NAME.pack_into(self._page, self._NAME_AT, len(name), name)

    def end(self) -> None:
        """A run is over."""
        self._RAN.pack_into(self._page, self._RAN_AT, self.runs + 1, time.monotonic())


@dataclass(frozen=True)
class Hand:
    """One lease's token, and its connection's slate. Its identity is the lease's."""

    token: Token
    slate: Slate

    def resting_since(self) -> float | None:
        """Since when the container rests in the child's hand; None while a run is under way."""
        return self.slate.since if self.token.lies() else None

    def runs_unasked(self) -> int:
        """How many runs of this lease are over that the owner was not asked for: all but the first."""
        return max(0, self.slate.runs - 1)
