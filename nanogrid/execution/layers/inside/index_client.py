"""Runs a command in a container without network, with the package index on a loopback port.

    index_client.py PORT COMMAND...

The rule: bytes pass from the port to the socket of `index_server.py` and back, unread. The command could do the same itself.
Exits with the command's exit code.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

GATEWAY = Path("/nanogrid/gateway")
CHUNK_BYTES = 256 * 1024


class Relay(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Pass bytes both ways until both ends are closed."""
        with socket.socket(socket.AF_UNIX) as served:
            served.connect(str(GATEWAY / "socket"))
            asking = threading.Thread(target=_copy, args=(self.request, served), daemon=True)
            asking.start()
            _copy(served, self.request)


class LoopbackServer(socketserver.ThreadingTCPServer):
    """Listens on loopback."""

    allow_reuse_address = True
    daemon_threads = True


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


def main() -> int:
    """Serve while the command runs."""
    # This open blocks until the other side listens.
    with (GATEWAY / "ready").open("rb"), LoopbackServer(("127.0.0.1", int(sys.argv[1])), Relay) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = subprocess.call(sys.argv[2:])
        server.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
