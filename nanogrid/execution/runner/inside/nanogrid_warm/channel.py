"""Packets with descriptors, between the host, the first process and the spare.

The rule: only the first process and the host use the connection between them, and the first process reads nothing from it; it only checks
whether the host is still there. A request goes straight to the spare that runs it, over a connection that ends with the run and from which
the host reads nothing. The spare sends plain text to the first process.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: S302
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _socket
import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Sequence
    from typing import Any

PACKET_BYTES = 1 << 16
"""The largest packet that the host sends. A buffer of twice the size would be mapped and unmapped in each run."""
DESCRIPTORS = 4
STREAMS = 3
INT_BYTES = 4
CREDENTIALS_BYTES = 12


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Return two connected sockets."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def open_descriptor(descriptor: int) -> _socket.socket:
    """Return a socket for a descriptor that was opened elsewhere."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)


def receive(connection: _socket.socket) -> tuple[bytes, list[int]]:
    """Return the next packet and its descriptors; b"" at the end of the connection."""
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


def receive_bytes(connection: _socket.socket, limit: int = PACKET_BYTES) -> bytes:
    """Return the first bytes of the next packet, b"" at the end. The kernel closes descriptors that come with it: none may stay here."""
    try:
        return connection.recv(limit)
    except ConnectionError:
        return b""


def send(connection: _socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> bool:
    """Send a packet. Returns False if the other end is closed."""
    ancillary = []
    if descriptors:
        data = b"".join([number.to_bytes(INT_BYTES, "little") for number in descriptors])
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]
    try:
        connection.sendmsg([packet], ancillary, _socket.MSG_NOSIGNAL)
    except ConnectionError:
        return False
    return True


def decode_request(packet: bytes, descriptors: list[int]) -> dict[str, Any]:
    """Return the dict in a packet. One that is too large for a packet is in the last descriptor, which is removed and closed."""
    if packet != b"F":
        return marshal.loads(packet)
    file = descriptors.pop()
    try:
        return marshal.loads(os.pread(file, os.fstat(file).st_size, 0))
    finally:
        os.close(file)


class Handover:
    """Gives sockets to one process only after code of the function has run in it, so that this code cannot hold them.

    The process connects to an abstract address, whose name it knows from before its fork. The first process sends the sockets if the
    kernel confirms that the peer is this process.
    """

    def __init__(self, sockets: Sequence[_socket.socket]) -> None:
        self._sockets = sockets
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.listener.bind(b"")  # the kernel chooses an abstract name
        self._address = self.listener.getsockname()
        self.listener.listen(1)

    def admit(self, process: int) -> bool:
        """Accept a connection. Send the sockets and return True if the peer is this process."""
        descriptor, _ = self.listener._accept()
        peer = open_descriptor(descriptor)
        credentials = peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, CREDENTIALS_BYTES)
        is_expected = int.from_bytes(credentials[:INT_BYTES], "little") == process
        if is_expected:
            send(peer, b"in", [one.fileno() for one in self._sockets])
        peer.close()
        return is_expected

    def fetch(self) -> list[_socket.socket]:
        """Fetch the sockets in the process that they are for. Raises OSError if that fails."""
        fetcher = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        fetcher.connect(self._address)
        _, descriptors = receive(fetcher)
        fetcher.close()
        if len(descriptors) != len(self._sockets):
            raise ConnectionError("the first process did not send the process its connections")
        return list(map(open_descriptor, descriptors))

    def close_in_child(self) -> None:
        """Close everything in the process that will fetch."""
        self.listener.close()
        for one in self._sockets:
            one.close()


class SpareConnections:
    """The two connections of one spare: to the first process (`runner_end` and `spare_end`), and from the host (`host_end` and `request_end`).

    The spare inherits its ends. If code of the function runs in it before its request (`deferred`), it inherits none and fetches them
    afterwards (`Handover`). The template, which has run code of the function too, receives them with the order to fork.
    """

    def __init__(self, *, deferred: bool) -> None:
        self.runner_end, self.spare_end = pair()
        self.host_end, self.request_end = pair()
        self.handover = Handover((self.spare_end, self.request_end)) if deferred else None

    # -- in the first process

    def close_spare_ends(self) -> None:
        """Close the spare's ends, if it has inherited them."""
        if self.handover is None:
            self._close_spare_ends()

    def admit(self, spare: int) -> None:
        """Accept a connection, and send the spare's ends to it if the peer is the process `spare`."""
        assert self.handover is not None
        if self.handover.admit(spare):
            self._close_spare_ends()

    def announce(self, word: bytes, connection: _socket.socket) -> None:
        """Send this word to the host, with the host's end."""
        send(
            connection, word, [self.host_end.fileno()]
        )  # `close` closes it: a runner that is ready closes nothing more

    def _close_spare_ends(self) -> None:
        for one in (self.spare_end, self.request_end):
            one.close()
        if self.handover is not None:
            self.handover.listener.close()
            self.handover = None

    def close(self) -> None:
        """Close everything that is still open."""
        self._close_spare_ends()
        self.host_end.close()
        self.runner_end.close()

    # -- in the spare

    def close_runner_ends(self) -> None:
        """Close the ends of the others; if they are `deferred`, all ends."""
        self.runner_end.close()
        self.host_end.close()
        if self.handover is not None:
            self.handover.close_in_child()

    def fetch(self) -> None:
        """Fetch the spare's ends, if they are `deferred`. Raises OSError if that fails."""
        if self.handover is not None:
            self.spare_end, self.request_end = self.handover.fetch()


class ReceivedConnections:
    """The spare's ends of its connections, as a template received them with the order to fork."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self.spare_end, self.request_end = map(open_descriptor, descriptors)

    def fetch(self) -> None:
        """Do nothing: the ends are there."""
