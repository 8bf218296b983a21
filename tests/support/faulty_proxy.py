"""An HTTP proxy on loopback, in front of an SQS endpoint, that breaks chosen requests in chosen ways.

    with FaultyProxy(moto.port) as proxy:
        proxy.fail("ReceiveMessage", status=503, times=3)
        ...
        assert proxy.count("ReceiveMessage") > 3

The rule: a request without a fault passes unchanged, and every request is recorded.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

ANY = "*"
NOT_FORWARDED = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Request:
    """A request that came in. `status` is None if it got no complete answer."""

    action: str
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)
    status: int | None = None

    @property
    def queue(self) -> str:
        """The queue's name in SQS, or an empty string if the request names none."""
        return str(self.body.get("QueueUrl") or self.body.get("QueueName") or "").rpartition("/")[2]


@dataclass
class Fault:
    """What to do to requests of one action: the next `times` of them, or those of the next seconds, or all until `heal`."""

    action: str
    break_it: Callable[[Handler, Request], None]
    left: int | None
    until: float | None
    queue: str

    def takes(self, request: Request) -> bool:
        """Whether this fault hits the request. Counts it if so."""
        if self.action not in (ANY, request.action) or (self.queue and self.queue != request.queue):
            return False
        if self.left == 0 or (self.until is not None and request.at > self.until):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Handler(BaseHTTPRequestHandler):
    """One connection. The proxy is `self.server.proxy`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Register the connection, so that the proxy can close it."""
        super().setup()
        self.server.proxy.connections.add(self.connection)

    def finish(self) -> None:
        """The connection has ended."""
        self.server.proxy.connections.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        """SQS requests are POSTs."""
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = _read(self.headers.get("X-Amz-Target") or "", body)
        fault = proxy.record(request)
        try:
            if fault is None:
                self.answer(request, *proxy.forward(self.path, body, dict(self.headers)))
            else:
                fault.break_it(self, request)
        except (BrokenPipeError, ConnectionResetError):
            request.status = None
            self.close_connection = True

    def answer(self, request: Request, status: int, headers: dict[str, str], body: bytes, cut: int = 0) -> None:
        """Send a response; with `cut`, send all but the last bytes, and close the connection."""
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # Recorded before the last byte is sent: a client with the answer may ask for the status.
        request.status = None if cut else status
        self.wfile.write(body[: len(body) - cut])
        self.wfile.flush()
        if cut:
            self.drop()

    def drop(self) -> None:
        """Close without an answer."""
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are recorded, not printed."""


class Server(ThreadingHTTPServer):
    """A thread per connection; no thread keeps a test from ending."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: FaultyProxy, port: int) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class FaultyProxy:
    """The proxy. Use as a context manager, or `start` and `stop`. All methods are safe from any thread.

    A fault hits requests of `action` (`*`: of any), of one queue if named, the next `times` of them, or those of the next
    `seconds`, or, without either, all until `heal`. Faults are tried in the order they were given.
    """

    def __init__(self, upstream_port: int, port: int = 0) -> None:
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._requests: list[Request] = []
        self._released = threading.Event()
        self.connections: set[socket.socket] = set()
        self._server = Server(self, port)
        self.port: int = self._server.server_address[1]

    @property
    def url(self) -> str:
        """Endpoint URL for SQS clients."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyProxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start to answer."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty-proxy", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on, and close the open ones: a client with an open connection would notice nothing."""
        self.heal()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # -- faults

    def fail(self, action: str = ANY, *, status: int, code: str = "InjectedFault", **when: Any) -> None:
        """Answer with an error of SQS."""
        body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "injected by a test"}).encode()
        headers = {"Content-Type": "application/x-amz-json-1.0"}
        self._add(action, lambda handler, request: handler.answer(request, status, headers, body), **when)

    def garble(self, action: str = ANY, *, body: bytes = b"<html>Sign in to the network</html>", **when: Any) -> None:
        """Answer 200 with a body that is not from SQS."""
        self._add(action, lambda handler, request: handler.answer(request, 200, {}, body), **when)

    def drop(self, action: str = ANY, **when: Any) -> None:
        """Close the connection instead of answering."""
        self._add(action, lambda handler, _: handler.drop(), **when)

    def truncate(self, action: str = ANY, **when: Any) -> None:
        """Close the connection in the middle of the body of an error page."""
        body = b'{"Messages": ["cut off'
        self._add(action, lambda handler, request: handler.answer(request, 200, {}, body, cut=8), **when)

    def hang(self, action: str = ANY, **when: Any) -> None:
        """Accept the request and send nothing, until `heal`."""
        released = self._released

        def wait(handler: Handler, _: Request) -> None:
            released.wait()
            handler.drop()

        self._add(action, wait, **when)

    def delay(self, action: str = ANY, *, delay_s: float, **when: Any) -> None:
        """Answer correctly, but late."""

        def later(handler: Handler, request: Request) -> None:
            threading.Event().wait(delay_s)
            handler.answer(
                request, *self.forward(handler.path, json.dumps(request.body).encode(), dict(handler.headers))
            )

        self._add(action, later, **when)

    def heal(self) -> None:
        """Remove all faults, and drop hanging requests."""
        with self._lock:
            self._faults.clear()
            self._released.set()
            self._released = threading.Event()

    def _add(
        self,
        action: str,
        break_it: Callable[[Handler, Request], None],
        *,
        times: int | None = None,
        seconds: float | None = None,
        queue: str = "",
    ) -> None:
        until = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            self._faults.append(Fault(action, break_it, times, until, queue))

    # -- what came

    def record(self, request: Request) -> Fault | None:
        """Record a request. Return its fault, if any."""
        with self._lock:
            self._requests.append(request)
            return next((fault for fault in self._faults if fault.takes(request)), None)

    def requests(self, action: str = ANY, queue: str = "") -> list[Request]:
        """The requests so far, oldest first."""
        with self._lock:
            return [
                request
                for request in self._requests
                if action in (ANY, request.action) and queue in ("", request.queue)
            ]

    def count(self, action: str = ANY, queue: str = "") -> int:
        """How many requests there were."""
        return len(self.requests(action, queue))

    def forward(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Ask the real endpoint: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=60)
        try:
            sent = {name: value for name, value in headers.items() if name.lower() not in NOT_FORWARDED}
            connection.request("POST", path, body, sent)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in NOT_FORWARDED}
            return answer.status, kept, answer.read()
        except OSError as error:
            return 502, {}, str(error).encode()
        finally:
            connection.close()


def _read(target: str, body: bytes) -> Request:
    """Action and parameters, of the JSON protocol (X-Amz-Target) or the older query protocol (Action)."""
    if target:
        return Request(target.rpartition(".")[2], json.loads(body or b"{}"))
    form = {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
    return Request(form.get("Action", ""), form)
