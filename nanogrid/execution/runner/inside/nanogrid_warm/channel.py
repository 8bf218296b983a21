"""Packets with descriptors, between host, first process and spare.

The rule: the connection between the first process and the host is theirs alone, and the first process reads nothing from it, only
whether the host is still there. A request goes straight to the spare that is to run it, over a connection of its own that ends with
it, and on which the host hears nothing. What a spare says to the first process is plain text.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: S302
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _socket
import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not to be loaded where the function runs
    from collections.abc import Sequence
    from typing import Any

PACKET_BYTES = 1 << 16
"""What the host sends in one packet at most. A buffer of twice that would be mapped and unmapped for each run."""
DESCRIPTORS = 4
STREAMS = 3
INT_BYTES = 4
CREDENTIALS_BYTES = 12


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Two connected sockets."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def open_descriptor(descriptor: int) -> _socket.socket:
    """A socket on a descriptor that another process image has opened."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)


def receive(connection: _socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors; b"" at the end of the connection."""
    try:
        packet, ancillary, _, _ = connection.recvmsg(PACKET_BYTES, _socket.CMSG_SPACE(INT_BYTES * DESCRIPTORS))
    except ConnectionError:
        return b"", []
    descriptors = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            view = memoryview(data)[: len(data) - len(data) % INT_BYTES]
            descriptors += view.cast("i").tolist()
    return packet, descriptors


def hear(connection: _socket.socket, most: int = PACKET_BYTES) -> bytes:
    """The next packet's first bytes, b"" at the end. Descriptors beside it are dropped by the kernel: nobody's may stay here."""
    try:
        return connection.recv(most)
    except ConnectionError:
        return b""


def send(connection: _socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> bool:
    """Send a packet. False where nobody is there any more."""
    ancillary = []
    if descriptors:
        data = b"".join([number.to_bytes(INT_BYTES, "little") for number in descriptors])
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]
    try:
        connection.sendmsg([packet], ancillary, _socket.MSG_NOSIGNAL)
    except ConnectionError:
        return False
    return True


def message(packet: bytes, descriptors: list[int]) -> dict[str, Any]:
    """The dict of a packet; one that is too large for a packet lies in the last descriptor, which is taken and closed."""
    if packet != b"F":
        return marshal.loads(packet)
    file = descriptors.pop()
    try:
        return marshal.loads(os.pread(file, os.fstat(file).st_size, 0))
    finally:
        os.close(file)


class Meeting:
    """One spare's two connections: to the first process (`here` and `there`), and from the host (`host` and `requests`).

    It inherits its ends; or, where code of the function runs in it before its request is there, it has none, and fetches them
    afterwards: then they are sent to whoever connects, if the kernel says that it is the spare.
    """

    def __init__(self, *, apart: bool) -> None:
        self.here, self.there = pair()
        self.host, self.requests = pair()
        self.listener: _socket.socket | None = None
        if apart:
            self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            self.listener.bind(b"")  # the kernel chooses an abstract name
            self.address = self.listener.getsockname()
            self.listener.listen(1)

    # -- in the first process

    def keep_own(self) -> None:
        """Close what is the spare's, where it has inherited that."""
        if self.listener is None:
            self._close_spares()

    def admit(self, spare: int) -> None:
        """Let in who is at the door, if it is the spare."""
        assert self.listener is not None
        descriptor, _ = self.listener._accept()
        guest = open_descriptor(descriptor)
        credentials = guest.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, CREDENTIALS_BYTES)
        if int.from_bytes(credentials[:INT_BYTES], "little") == spare:
            send(guest, b"in", [self.there.fileno(), self.requests.fileno()])
            self._close_spares()
        guest.close()

    def introduce(self, word: bytes, connection: _socket.socket) -> None:
        """Say this word to the host, and give it its end."""
        send(connection, word, [self.host.fileno()])  # closed with the others: who looks at it now finds it as it stays

    def _close_spares(self) -> None:
        for one in (self.there, self.requests):
            one.close()
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def close(self) -> None:
        """Close what is left of it."""
        self._close_spares()
        self.host.close()
        self.here.close()

    # -- in the spare

    def step_away(self) -> None:
        """Close what is not the spare's, and where the function's code comes first, everything."""
        self.here.close()
        self.host.close()
        if self.listener is not None:
            for one in (self.listener, self.there, self.requests):
                one.close()

    def join(self) -> None:
        """Have the connections. Raises OSError where they cannot be had."""
        if self.listener is None:
            return
        door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        door.connect(self.address)
        _, descriptors = receive(door)
        door.close()
        if len(descriptors) != len((self.there, self.requests)):
            raise ConnectionError("the first process did not let the spare in")
        self.there, self.requests = map(open_descriptor, descriptors)
