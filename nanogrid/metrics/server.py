"""A small HTTP server for pages that are made when they are asked for.

The rule: nothing that a client does or leaves undone holds up anything but its own answer. As many as MOST_CLIENTS are
served at once, each for CLIENT_S at most; the others are turned away.
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

LOOK_EVERY_S = 0.1
TEXT = "text/plain; charset=utf-8"
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str = TEXT
    status: int = 200


Pages = Mapping[str, Callable[[], Page]]


class _Handler(BaseHTTPRequestHandler):
    """One request per connection. Nothing of the request is used but its path."""

    server: Server
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


class Server(ThreadingHTTPServer):
    """Bound when it is made; serves from `start` to `stop`. Raises OSError where the address is taken.

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
        self._thread = threading.Thread(
            target=self.serve_forever, args=(LOOK_EVERY_S,), name="metrics-http", daemon=True
        )

    def server_bind(self) -> None:
        """Bind. http.server would ask a name server for its own name here."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Serve, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and hang up."""
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
        """The answer for a path, and the name that the client has for this server."""
        if self._is_local and not _is_local_name(host):
            return Page(b"this port answers to localhost and to addresses only\n", status=403)
        make = self._pages.get(path)
        if make is None:
            return Page(("there is only " + ", ".join(self._pages) + "\n").encode(), status=404)
        try:
            return make()
        except Exception:
            log.exception("%s could not be made", path)
            return Page(b"this page could not be made; the worker's log says why\n", status=500)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread of its own, if there are not too many."""
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
        """In that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def service_actions(self) -> None:
        """Between two connections: hang up on those who take too long."""
        self._hang_up(time.monotonic())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        log.debug("%s hung up", client_address)

    def _hang_up(self, now: float) -> None:
        with self._lock:
            overdue = [client for client, until in self._clients.items() if now >= until]
        for client in overdue:
            with suppress(OSError):  # it was faster
                client.shutdown(socket.SHUT_RDWR)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._clients.pop(request, None)


def _is_local_name(host: str | None) -> bool:
    """Whether a Host header names this host by an address or as localhost: a web page that had its own name resolve to
    loopback, to read what is there, would send that name."""
    name = re.sub(r":[0-9]+$", "", host or "localhost").strip("[]")
    try:
        ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
