"""A container owner and its pool on the real engine, for tests that run functions without Celery, SQS or S3."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogrid.execution.container.cgroup import Usage
from nanogrid.execution.container.engine import Engine, ExitStatus
from nanogrid.execution.container.hardening import Confinement, environment
from nanogrid.execution.container.labels import DATA_LABEL, data_id
from nanogrid.execution.container.report import RunReport
from nanogrid.execution.pool.child.lease import Container, Pool
from nanogrid.execution.pool.owner.owner import Owner
from nanogrid.execution.pool.protocol import LeaseRequest
from nanogrid.execution.pool.snapshot import snapshot
from nanogrid.request import parse_request
from nanogrid.runtimes import Runtime
from nanogrid.settings import Settings

PYTHON_IMAGE = "nanogrid/python:3.9"
NEWEST_PYTHON_IMAGE = "nanogrid/python:3.13"
CPP_IMAGE = "nanogrid/gcc:11"
SHELL_IMAGE = "nanogrid/redis:7"
"""An image without Python."""


@dataclass(frozen=True)
class Run:
    """The outcome of one run in a test."""

    report: RunReport
    value: bytes | None
    end: ExitStatus | None
    container: Container

    @property
    def out(self) -> str:
        return self.report.stdout.data.decode()

    @property
    def err(self) -> str:
        return self.report.stderr.data.decode()

    @property
    def usage(self) -> Usage:
        return self.report.usage


class Rig:
    """Runs programs the way a worker's child does."""

    def __init__(self, settings: Settings, code_dir: Path) -> None:
        self.settings = settings
        self.engine = Engine(settings)
        self.owner = Owner(settings, self.engine)
        self.pool = Pool(self.owner.address, settings)
        self._code_dir = code_dir

    def wanted(self, files: dict[str, str], runtime: str = "python", **fields: Any) -> tuple[LeaseRequest, float]:
        """A lease request for a function made of these files, and its timeout in seconds."""
        code = self._code_dir / uuid.uuid4().hex
        code.mkdir(parents=True)
        for name, text in files.items():
            (code / name).parent.mkdir(exist_ok=True)
            (code / name).write_text(text)
            (code / name).chmod(0o444)
        code.chmod(0o555)
        request = parse_request(
            {"functionId": "f", "runtime": runtime, "s3Bucket": "none", "s3Key": "none", **fields},
            self.settings,
            request_id=f"test-{uuid.uuid4().hex[:12]}",
        )
        entry = self.settings.runtime_table[runtime]
        limits = Confinement(request.memory_mb, request.cpus, request.network)
        wanted = LeaseRequest(
            request.request_id, "f", entry.image, entry.command, environment(request, self.settings), str(code), limits
        )
        return wanted, request.timeout_ms / 1000

    def run(
        self,
        main: str | dict[str, str],
        *,
        runtime: str = "python",
        payload: Any = None,
        during: Callable[[Container], None] | None = None,
        **fields: Any,
    ) -> Run:
        """Run a python source (or the files of any function) once."""
        files = {"main.py": main} if isinstance(main, str) else main
        wanted, timeout_s = self.wanted(files, runtime, **fields)
        with self.pool.lease(wanted, payload) as container:
            if during is not None:
                during(container)
            report = container.run(timeout_s=timeout_s)
        return Run(report, report.result.data, container.end, container)

    def containers_of(self, request_id: str) -> list[str]:
        """Names of the containers that a request is using."""
        return [
            shown.name
            for shown in snapshot(self.settings.data_dir)
            if shown.request_id == request_id and shown.state == "leased"
        ]

    def containers(self) -> list[str]:
        """Names of all containers of this data folder."""
        label = {DATA_LABEL: data_id(self.settings.data_dir)}
        return [found.name for found in self.engine.find(label)]


@contextmanager
def rig(tmp_path: Path, **changes: Any) -> Iterator[Rig]:
    """A rig with its own data folder. At its end, the test fails if a container or a run folder is left."""
    settings = Settings(
        **{
            "data_dir": tmp_path / "data",
            "python_image": PYTHON_IMAGE,
            "cpp_image": CPP_IMAGE,
            "pull_images": False,
            "runtimes": {"sh": Runtime(image=SHELL_IMAGE, command=("/bin/sh", "run.sh"), required_file="run.sh")},
            **changes,
        }
    )
    here = Rig(settings, tmp_path / "code")
    for image in (PYTHON_IMAGE, CPP_IMAGE, SHELL_IMAGE):
        assert here.engine.has_image(image), f"image {image} is missing: run `make images`"
    here.owner.start()
    try:
        yield here
    finally:
        here.pool.close()
        here.owner.stop()
        left = here.containers()
        here.engine.close()
    assert left == []
    assert list((settings.data_dir / "runs").iterdir()) == []
    assert list((settings.data_dir / "owners").iterdir()) == []
