"""The other baselines: how most systems use Docker's API. All containers carry `LABEL` and are removed at the end.

The rule: the same limits as NanoGrid's own containers, and no work that the comparison does not name.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.programs import Program
from nanogrid.settings import Settings

if TYPE_CHECKING:
    from docker import APIClient

LABEL = "nanogrid.benchmark"
CODE = "/code"
MIB = 1024 * 1024


def connect(settings: Settings) -> APIClient:
    """A client for this process alone. Create it after a fork."""
    from docker import APIClient

    return APIClient(base_url=settings.docker_url, version="auto", timeout=60)


def options(image: str, command: list[str], folder: Path, settings: Settings) -> dict[str, Any]:
    """The body of a create call: network none, and the default limits of a request."""
    memory_bytes = settings.memory_mb * MIB
    return {
        "Image": image,
        "Cmd": command,
        "User": f"{settings.container_uid}:{settings.container_uid}",
        "WorkingDir": CODE,
        "Labels": {LABEL: "1"},
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,noexec,size={settings.tmp_mb * MIB}"},  # noqa: S108
            "Binds": [f"{folder}:{CODE}:ro"],
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,
            "NanoCpus": int(settings.cpus * 1e9),
            "PidsLimit": settings.pids_limit,
        },
    }


def create(api: APIClient, body: dict[str, Any]) -> str:
    """Create a container and return its id."""
    made: dict[str, Any] = api.create_container_from_config(body, _name())  # type: ignore[no-untyped-call]
    return str(made["Id"])


class DockerRun:
    """`docker run` through the API: create, start, wait, read the log, remove."""

    def __init__(self, api: APIClient, body: dict[str, Any], program: Program) -> None:
        self._api, self._body, self._prints = api, body, program.prints.encode()

    def __call__(self) -> None:
        """One complete run."""
        made = self._create_start_wait()
        out = self._api.logs(made, stdout=True, stderr=False)
        self._api.remove_container(made, force=True)
        if out != self._prints:
            raise RuntimeError(f"docker run printed {out!r}")

    def create_start_wait(self) -> float:
        """Milliseconds of create, start and wait; the removal is not counted."""
        begin = time.perf_counter()
        made = self._create_start_wait()
        took_ms = (time.perf_counter() - begin) * 1000
        self._api.remove_container(made, force=True)
        return took_ms

    def _create_start_wait(self) -> str:
        made = create(self._api, self._body)
        self._api.start(made)
        status = self._api.wait(made)["StatusCode"]
        if status != 0:
            raise RuntimeError(f"docker run ended with {status}")
        return made


class DockerExec:
    """`docker exec` into a container that runs and is not paused; the output is read to its end."""

    def __init__(self, api: APIClient, container_id: str, command: list[str], program: Program) -> None:
        self._api, self._id, self._command = api, container_id, command
        self._prints = program.prints.encode()

    def __call__(self) -> None:
        """One run."""
        made = self._api.exec_create(self._id, self._command, workdir=CODE)
        out = self._api.exec_start(made["Id"])
        if out != self._prints:
            raise RuntimeError(f"docker exec printed {out!r}")


@contextmanager
def sleeping(api: APIClient, body: dict[str, Any]) -> Iterator[str]:
    """A container that waits for execs."""
    made = create(api, {**body, "Cmd": ["sleep", "infinity"]})
    try:
        api.start(made)
        yield made
    finally:
        api.remove_container(made, force=True)


def remove_left(settings: Settings) -> None:
    """Remove every container of an interrupted benchmark."""
    api = connect(settings)
    try:
        for row in api.containers(all=True, filters={"label": LABEL}):
            with contextlib.suppress(Exception):
                api.remove_container(row["Id"], force=True)
    finally:
        api.close()


def _name() -> str:
    return f"nanogrid-benchmark-{uuid.uuid4().hex[:12]}"
