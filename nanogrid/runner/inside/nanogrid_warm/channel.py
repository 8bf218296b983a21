"""Packets with descriptors, between host, first process and spare.

The rule: only what comes from the host, or from the first process, is unmarshalled. What a spare says is plain text.
"""

import _socket
import marshal
import os

PACKET_BYTES = 1 << 17
DESCRIPTORS = 4
STREAMS = 3
INT_BYTES = 4


def pair():
    """Two connected sockets."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def open_descriptor(descriptor):
    """A socket on a descriptor that another process image has opened."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)


def receive(connection):
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


def send(connection, packet, descriptors=()):
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


def message(packet, descriptors):
    """The dict of a packet; one that is too large for a packet lies in the last descriptor, which is taken and closed."""
    if packet != b"F":
        return marshal.loads(packet)
    file = descriptors.pop()
    try:
        return marshal.loads(os.pread(file, os.fstat(file).st_size, 0))
    finally:
        os.close(file)
