"""Removing a container: what the engine answers when the container ends at the same moment.

The moment cannot be forced on a real engine; what it answered when that happened is given again here, over a socket.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from nanogrid.errors import ContainerError
from nanogrid.execution.container.engine import Engine
from nanogrid.settings import Settings

ENDED_MEANWHILE = 500, "Could not kill running container abc, cannot remove - Container abc is not running"
REMOVED = 204, ""
GONE = 404, "No such container: abc"
UNDER_WAY = 409, "removal of container abc is already in progress"
BROKEN = 500, "driver failed to remove root filesystem"


class Answers(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An engine that answers removals by a list, and counts them."""

    daemon_threads = True

    def __init__(self, path: Path, answers: list[tuple[int, str]]) -> None:
        super().__init__(str(path), _Handler)
        self.left = list(answers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Answers

    def do_GET(self) -> None:
        self._say(200, {"ApiVersion": "1.41", "Version": "20.10.24"})

    def do_DELETE(self) -> None:
        status, message = self.server.left.pop(0)
        self._say(status, {"message": message} if message else None)

    def _say(self, status: int, content: object) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "engine"

    def log_message(self, *args: object) -> None:
        """Nothing: requests are of no interest."""


@contextmanager
def answering(folder: Path, answers: list[tuple[int, str]]) -> Iterator[tuple[Engine, Answers]]:
    path = folder / "docker.sock"
    with Answers(path, answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with closing(Engine(Settings(docker_url=f"unix://{path}"))) as engine:
                yield engine, server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "answers", [[REMOVED], [GONE], [UNDER_WAY], [ENDED_MEANWHILE, REMOVED], [ENDED_MEANWHILE, GONE]]
)
def test_a_container_that_ends_meanwhile_is_removed(tmp_path: Path, answers: list[tuple[int, str]]) -> None:
    """An engine that wanted to kill what had ended by itself has removed nothing: it is asked again."""
    with answering(tmp_path, answers) as (engine, server):
        engine.remove("abc")
    assert server.left == []


@pytest.mark.parametrize("answers", [[BROKEN], [ENDED_MEANWHILE, ENDED_MEANWHILE]])
def test_what_the_engine_cannot_do_is_an_error(tmp_path: Path, answers: list[tuple[int, str]]) -> None:
    """With its own words; it is not asked for ever."""
    with answering(tmp_path, answers) as (engine, server), pytest.raises(ContainerError, match=answers[-1][1]):
        engine.remove("abc")
    assert server.left == []
