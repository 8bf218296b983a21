"""A real HTTP server between a client and S3 that counts requests, refuses them and cuts responses off, as configured."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

NOT_PASSED_ON = {"connection", "transfer-encoding", "keep-alive"}


class FaultyS3(ThreadingHTTPServer):
    """Passes requests on to `upstream_url`.

    `requests` lists ("GET", "/bucket/key") of all requests, including refused ones. `refusal` is (status, S3 error code) of
    every answer while it is set. `cut_at_bytes` ends each longer GET body there. While `gate` is clear, answers are held
    back; `held` is set as soon as one is.
    """

    daemon_threads = True

    def __init__(self, upstream_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        upstream = urlsplit(upstream_url)
        self.upstream = (str(upstream.hostname), int(upstream.port or 80))
        self.requests: list[tuple[str, str]] = []
        self.refusal: tuple[int, str] | None = None
        self.cut_at_bytes: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.held = threading.Event()

    @property
    def url(self) -> str:
        """Endpoint URL of this server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def methods(self) -> list[str]:
        """The methods of all requests since `forget`, in order."""
        return [method for method, _ in self.requests]

    def forget(self) -> None:
        """Count from now on."""
        self.requests.clear()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect: these tests provoke that."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        """Print nothing to stderr."""

    def _pass_on(self) -> None:
        self.server.requests.append((self.command, self.path))
        if not self.server.gate.is_set():
            self.server.held.set()
            self.server.gate.wait()
        if self.server.refusal is not None:
            self._refuse(*self.server.refusal)
            return
        connection = http.client.HTTPConnection(*self.server.upstream)
        try:
            connection.request(self.command, self.path, headers=dict(self.headers))
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in NOT_PASSED_ON:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut_at_bytes
        if cut is not None and len(body) > cut:
            self.wfile.write(body[:cut])
            self.close_connection = True
        else:
            self.wfile.write(body)


@contextmanager
def faulty_s3(upstream_url: str) -> Iterator[FaultyS3]:
    """A FaultyS3 for the length of a `with` block."""
    server = FaultyS3(upstream_url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
