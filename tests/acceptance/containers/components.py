"""pytest-celery's components, made of images that are built here: nothing is pulled.

The rule: no component publishes a port. The worker needs the engine of this very host, so that every container's own
address can be reached from here, and no other user of the machine or its network meets an open port.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pytest_celery import (
    CeleryTestContainer,
    CeleryTestWorker,
    CeleryWorkerContainer,
    LocalstackContainer,
    RedisContainer,
)

WORKER_IMAGE = f"nanogrid/worker:{version('nanogrid')}"
MOTO_IMAGE = f"nanogrid/moto:{version('moto')}"
REDIS_IMAGE = "nanogrid/redis:7"

SQS_PORT, REDIS_PORT, FLOWER_PORT = 4566, 6379, 5555
STOP_TIMEOUT_S = 20


class Moto(LocalstackContainer):
    """moto's server where pytest-celery has localstack: SQS and S3 on the same port."""

    @property
    def ready_prompt(self) -> str:
        return "Running on"

    @property
    def port(self) -> int:
        return SQS_PORT

    @property
    def host_url(self) -> str:
        return f"sqs://{self.ips.primary}:{SQS_PORT}"

    @property
    def endpoint_url(self) -> str:
        """Endpoint for containers in the same network."""
        return f"http://{self.hostname}:{SQS_PORT}"

    @property
    def host_endpoint_url(self) -> str:
        """Endpoint for this process."""
        return f"http://{self.ips.primary}:{SQS_PORT}"


class Redis(RedisContainer):
    """Results in database 0, events and remote control in database 1."""

    @property
    def port(self) -> int:
        return REDIS_PORT

    @property
    def host_url(self) -> str:
        return f"redis://{self.ips.primary}:{REDIS_PORT}/{self.vhost}"


class Worker(CeleryWorkerContainer):
    """The worker image, started in the one way that everybody starts it."""

    @classmethod
    def command(cls, *args: str, **kwargs: Any) -> list[str]:
        return ["celery", "-A", "nanogrid", "worker", "-Q", cls.worker_queue(), "--loglevel", cls.log_level(), *args]

    @classmethod
    def worker_name(cls) -> str:
        return "celery"

    @classmethod
    def worker_queue(cls) -> str:
        return "python,cpp"

    @property
    def running(self) -> bool:
        """Whether its first process lives."""
        self.reload()
        return bool(self.status == "running")

    def host_pids(self) -> set[int]:
        """Its processes, by the host's numbers."""
        listing = self._container.top(ps_args="-eo pid")
        return {int(row[0]) for row in listing["Processes"]}

    def stop(self) -> int:
        """SIGTERM, as an orchestrator does it, and the exit code that follows."""
        self._container.stop(timeout=STOP_TIMEOUT_S)
        self.reload()
        return int(self.attrs["State"]["ExitCode"])


class WorkerNode(CeleryTestWorker):
    """A worker node that knows its own container class."""

    container: Worker


class Flower(CeleryTestContainer):
    """The worker image with Flower's command, as deploy/compose.yaml starts it."""

    @classmethod
    def command(cls, *args: str, **kwargs: Any) -> list[str]:
        return ["celery", "-A", "nanogrid", "flower", "--address=0.0.0.0", f"--port={FLOWER_PORT}", *args]

    @property
    def ready_prompt(self) -> str:
        return "Visit me at"

    @property
    def host_url(self) -> str:
        """Where its pages are, for this process."""
        return f"http://{self.ips.primary}:{FLOWER_PORT}"
