"""AWS's own runtime for Python handlers (`awslambdaric`) on this host: the reference for NanoGrid's handler support.

It receives events and sends answers over Lambda's runtime API, which this module serves on loopback.
"""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

API = "/2018-06-01/runtime/"
TIMEOUT_S = 30.0
ARN = "arn:aws:lambda:us-east-1:000000000000:function:function"


@dataclass(frozen=True)
class Answer:
    """The outcome of one event: the bytes that the handler's caller gets, or the name of the error."""

    value: bytes = b""
    error: str = ""


@dataclass
class Reference:
    """The output of one process of the reference."""

    answers: list[Answer] = field(default_factory=list)
    out: str = ""


def reference(
    code: Path, handler: str, events: Iterable[Any], env: Mapping[str, str], request_id: str = "request"
) -> Reference:
    """Run `handler` of the folder `code` once for each event, in one process, as Lambda does."""
    waiting = [json.dumps(event).encode() for event in events]
    wanted, found, all_answered, ended = len(waiting), Reference(), threading.Event(), threading.Event()

    class Api(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(ConnectionError):  # the process is killed while it waits for more
                super().handle()

        def do_GET(self) -> None:
            if not waiting:  # an answer of any kind, or a hang-up, would make it say something
                ended.wait(TIMEOUT_S)
                self.close_connection = True
                return
            body = waiting.pop(0)
            self.send_response(200)
            for name, value in (
                ("Lambda-Runtime-Aws-Request-Id", request_id),
                ("Lambda-Runtime-Deadline-Ms", str(int((time.time() + TIMEOUT_S) * 1000))),
                ("Lambda-Runtime-Invoked-Function-Arn", ARN),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()
            is_value = self.path.endswith("/response")
            found.answers.append(Answer(value=body) if is_value else Answer(error=json.loads(body)["errorType"]))
            if len(found.answers) == wanted or self.path == f"{API}init/error":
                all_answered.set()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", handler],
            cwd=code,
            env={**env, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            _await(process, all_answered)
        finally:
            process.kill()
            out, _ = process.communicate()
            ended.set()
            server.shutdown()
    found.out = out.decode()
    return found


def _await(process: subprocess.Popen[bytes], all_answered: threading.Event) -> None:
    """Wait until every event has an answer, or the process has ended by itself."""
    deadline = time.monotonic() + TIMEOUT_S
    while not all_answered.wait(0.02) and process.poll() is None:
        assert time.monotonic() < deadline, f"the reference gave no answer within {TIMEOUT_S:g} s"
