"""Real parts for tests, each started as its own process on loopback, and stopped by its handle."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import redis
from botocore.config import Config


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Poll `condition` until it is true. Fails with `what` if it does not become true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)


def accepts(port: int) -> bool:
    """Whether something listens on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Service:
    """A server process that can be stopped, killed and started again on the same port."""

    def __init__(self, argv: list[str], port: int, log: Path, ready: Callable[[], object]) -> None:
        self.argv, self.port, self.log, self._ready = argv, port, log, ready
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=subprocess.STDOUT, cwd=self.log.parent)
        process = self.process

        def up() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"{self.argv[0]} ended at start: {self.log.read_text()[-2000:]}")
            return bool(self._ready())

        wait_until(up, f"{self.argv[0]} answers on port {self.port}")

    def stop(self) -> None:
        """Stop it and wait for its end."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def kill(self) -> None:
        """Kill it, without a chance to clean up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def redis_service(folder: Path) -> Service:
    """A Redis that keeps its data across a restart."""
    binary = shutil.which("redis-server")
    assert binary, "redis-server is not installed: run `make setup`"
    port = free_port()
    argv = [
        binary,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--appendonly",
        "yes",
        "--save",
        "",
    ]

    def ready() -> bool:
        try:
            with redis.Redis(port=port) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    return Service(argv, port, folder / "redis.log", ready)


def moto_service(folder: Path) -> Service:
    """SQS and S3 over real HTTP."""
    port = free_port()
    argv = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return Service(argv, port, folder / "moto.log", lambda: accepts(port))


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """Start a service for the length of a `with` block."""
    service.start()
    try:
        yield service
    finally:
        service.stop()


def aws_client(kind: str, endpoint_url: str):  # type: ignore[no-untyped-def]  # boto3 types depend on the literal name
    """A boto3 client for a test endpoint, without retries that would hide faults."""
    return boto3.client(  # type: ignore[call-overload]
        kind,
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"max_attempts": 0}),
    )
