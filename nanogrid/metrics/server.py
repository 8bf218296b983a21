"""A small HTTP server for pages that are generated on request.

The rule: a client can delay only its own answer. At most MOST_CLIENTS are served at once, each for at most CLIENT_S; further
clients get 503.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

from nanogrid.metrics.address import Address

log = logging.getLogger(__name__)

MOST_CLIENTS = 8
CLIENT_S = 10.0
SILENCE_S = 5.0
"""Longest wait for a client's next byte."""

POLL_S = 0.1
TEXT = "text/plain; charset=utf-8"
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Page:
    """A response."""

    body: bytes
    content_type: str = TEXT
    status: int = 200


Pages = Mapping[str, Callable[[], Page]]


class _Handler(BaseHTTPRequestHandler):
    """One request per connection. Of the request, only the path and the Host header are used."""

    server: MetricsServer
    timeout = SILENCE_S
    server_version = "nanogrid"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        page = self.server.page(self.path.partition("?")[0], self.headers.get("Host"))
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
        log.debug("%s: " + format, self.address_string(), *args)

    def version_string(self) -> str:
        return self.server_version


class MetricsServer(ThreadingHTTPServer):
    """Bound when created; serves from `start` to `stop`. Raises OSError if the address is in use.

    All mutable state: `_clients` (when each connection ends), guarded by `_lock`.
    """

    block_on_close = False
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: Address, pages: Pages) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._pages = pages
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, float] = {}
        super().__init__((address.host, address.port), _Handler)
        self.address = Address(address.host, int(self.server_address[1]))
        self._is_local = ip_address(str(self.server_address[0])).is_loopback
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_S,), name="metrics-http", daemon=True)

    def server_bind(self) -> None:
        """Bind. The base class would also resolve the host's own name, which may query a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Start to serve, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to listen, and close all connections."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        self._hang_up(float("inf"))

    def leave_to_parent(self) -> None:
        """In a forked child: close what belongs to the main process alone."""
        self.socket.close()
        for client in list(self._clients):
            client.close()

    def page(self, path: str, host: str | None) -> Page:
        """Return the response for a path and the Host header of the request."""
        if self._is_local and not _is_local_name(host):
            return Page(b"this port serves only requests to localhost or to an IP address\n", status=403)
        make = self._pages.get(path)
        if make is None:
            return Page(("not found; the pages are " + ", ".join(self._pages) + "\n").encode(), status=404)
        try:
            return make()
        except Exception:
            log.exception("%s could not be generated", path)
            return Page(b"this page could not be generated; see the worker's log\n", status=500)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a new thread, unless there are too many clients."""
        with self._lock:
            free = len(self._clients) < MOST_CLIENTS
            if free:
                self._clients[request] = time.monotonic() + CLIENT_S
        if free:
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._forget(request)
                raise
            return
        with suppress(OSError):
            request.setblocking(False)
            request.send(BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Runs in that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def service_actions(self) -> None:
        """Between two connections: close those that take too long."""
        self._hang_up(time.monotonic())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a client that disconnected early at DEBUG only."""
        log.debug("%s hung up", client_address)

    def _hang_up(self, now: float) -> None:
        with self._lock:
            overdue = [client for client, until in self._clients.items() if now >= until]
        for client in overdue:
            with suppress(OSError):  # it is closed already
                client.shutdown(socket.SHUT_RDWR)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._clients.pop(request, None)


def _is_local_name(host: str | None) -> bool:
    """Whether a Host header holds an IP address or localhost.

    A web page whose own name resolves to loopback, in order to read this port, sends that name (DNS rebinding).
    """
    name = re.sub(r":[0-9]+$", "", host or "localhost").strip("[]")
    try:
        ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
