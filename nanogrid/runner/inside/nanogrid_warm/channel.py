"""Packets with descriptors, between host, first process and spare.

The rule: only what comes from the host, or from the first process, is unmarshalled. What a spare says is plain text.
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

PACKET_BYTES = 1 << 17
DESCRIPTORS = 4
STREAMS = 3
INT_BYTES = 4

_BUFFER = bytearray(PACKET_BYTES)
"""Kept, because memory of this size is mapped and unmapped again each time; wiped, because a spare inherits it."""


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Two connected sockets."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def open_descriptor(descriptor: int) -> _socket.socket:
    """A socket on a descriptor that another process image has opened."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)


def receive(connection: _socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors; b"" at the end of the connection."""
    try:
        size, ancillary, _, _ = connection.recvmsg_into([_BUFFER], _socket.CMSG_SPACE(INT_BYTES * DESCRIPTORS))
    except ConnectionError:
        return b"", []
    packet = bytes(memoryview(_BUFFER)[:size])
    _BUFFER[:size] = bytes(size)
    descriptors = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            view = memoryview(data)[: len(data) - len(data) % INT_BYTES]
            descriptors += view.cast("i").tolist()
    return packet, descriptors


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
