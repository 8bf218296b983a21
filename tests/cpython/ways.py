"""Two ways to run one module of the tests: warm, by NanoGrid's own pool and runner; and in plain docker.

The rule: plain docker gets what a function is promised (its user, its folders, its limits, no network), through options of `docker run`
that are written out here, and nothing of NanoGrid's runner or hardening. So NanoGrid is the cause of every difference.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker

from nanogrid.execution.container.report import EndReason, RunReport
from nanogrid.execution.pool.protocol import LeaseRequest
from nanogrid.execution.runner.inside.nanogrid_warm.source_scan import SourceScan
from nanogrid.result import StartKind
from nanogrid.settings import Settings
from tests.cpython.outcomes import Outcomes, read
from tests.support.rig import Rig

PROGRAM = Path(__file__).with_name("program.py")
MEMORY_MB = 1024
TIMEOUT_S = 600
LIMIT_BYTES = 64 << 20
USER = 65534
RUN = "/nanogrid/run"


class Subject:
    """One module as a function: its code on disk and its lease request. With `source`, the module's source is part of the code."""

    def __init__(self, rig: Rig, module: str, source: Path | None = None) -> None:
        self.module = module
        wanted, _ = rig.wanted({"main.py": PROGRAM.read_text()}, memoryMb=MEMORY_MB, timeoutMs=TIMEOUT_S * 1000)
        self.wanted: LeaseRequest = wanted
        self.code = Path(wanted.code_dir)
        if source is not None:
            self.code.chmod(0o755)
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, self.code / "subject" if source.is_dir() else self.code / "subject.py")
            self.code.chmod(0o555)

    def introspects(self) -> bool:
        """Whether the code contains words that make NanoGrid take a fresh interpreter."""
        scan = SourceScan()
        scan.folder(str(self.code).encode())
        return scan.introspects

    def remove(self) -> None:
        """Remove the code."""
        self.code.chmod(0o755)
        shutil.rmtree(self.code)


class Warm:
    """NanoGrid: the first run in a container loads the module, and only the second one counts."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def run(self, subject: Subject) -> tuple[Outcomes, bool]:
        """Run the module. Return its outcomes, and whether the container was warm."""
        self._once(subject, load=True)
        report, start = self._once(subject, load=False)
        return _of_report(subject.module, report), start is StartKind.WARM

    def _once(self, subject: Subject, *, load: bool) -> tuple[RunReport, StartKind]:
        wanted = replace(subject.wanted, request_id=f"cpython-{uuid.uuid4().hex[:12]}")
        with self.rig.pool.lease(wanted, {"module": subject.module, "load": load}) as container:
            return container.run(timeout_s=TIMEOUT_S), container.start_kind


def _of_report(module: str, report: RunReport) -> Outcomes:
    if report.result.size and report.result.data is None:
        raise ValueError(f"{module} left a value of {report.result.size} bytes, which is more than is read")
    output = (bytes(report.stdout.data) + bytes(report.stderr.data)).decode(errors="replace")
    end = f"exit code {report.exit_code}" if report.ended is EndReason.EXITED else report.ended.name.lower()
    if report.usage.oom_kills:
        end += ", out of memory"
    return read(module, report.result.data, end, report.duration_ms / 1000, output)


class Plain:
    """Plain `docker run`, with what a function is promised."""

    def __init__(self, client: docker.DockerClient, image: str, settings: Settings, folder: Path) -> None:
        self._client = client
        self._image = image
        self._settings = settings
        self._folder = folder
        self._running: set[Any] = set()

    def close(self) -> None:
        """Remove the containers that still run."""
        for container in list(self._running):
            container.remove(force=True)

    def run(self, subject: Subject) -> Outcomes:
        """Run it once."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            files = Path(folder)
            files.chmod(0o777)
            (files / "payload.json").write_text(json.dumps({"module": subject.module, "load": False}))
            began = time.monotonic()
            end, output = self._end_of(subject, files)
            took_s = time.monotonic() - began
            result = files / "result.json"
            return read(subject.module, result.read_bytes() if result.exists() else None, end, took_s, output)

    def _end_of(self, subject: Subject, files: Path) -> tuple[str, str]:
        """Return how the process ended, and its output."""
        container = self._create(subject, files)
        self._running.add(container)
        late = threading.Event()

        def end() -> None:
            late.set()
            container.kill()

        timer = threading.Timer(TIMEOUT_S, end)
        try:
            container.start()
            timer.start()
            output = b"".join(container.logs(stream=True, follow=True))
            status = container.wait()["StatusCode"]
            container.reload()
            killed = ", out of memory" if container.attrs["State"]["OOMKilled"] else ""
            return ("timed_out" if late.is_set() else f"exit code {status}{killed}"), output.decode(errors="replace")
        finally:
            timer.cancel()
            self._running.discard(container)
            container.remove(force=True)

    def _create(self, subject: Subject, files: Path) -> Any:
        limits = self._settings
        return self._client.containers.create(
            self._image,
            ["sh", "-c", f"cp -R /code/. . && chmod -R u+w . && exec python main.py <{RUN}/payload.json"],
            name=f"nanogrid-cpython-{uuid.uuid4().hex[:8]}",
            init=True,
            user=f"{USER}:{USER}",
            environment=subject.wanted.env,
            working_dir="/workspace",
            hostname="function",
            extra_hosts={"function": "127.0.0.1"},
            network_mode="none",
            sysctls={"net.ipv6.conf.all.disable_ipv6": "0"},  # docker removes ::1 from a container without a network
            read_only=True,
            tmpfs={
                "/workspace": f"exec,mode=0700,uid={USER},gid={USER},size={limits.workspace_mb}m",
                "/tmp": f"exec,mode=1777,size={limits.tmp_mb}m",
            },
            mem_limit=f"{MEMORY_MB}m",
            memswap_limit=f"{MEMORY_MB}m",
            nano_cpus=int(limits.cpus * 1e9),
            pids_limit=limits.pids_limit,
            ulimits=[docker.types.Ulimit(name="nofile", soft=limits.nofile_limit, hard=limits.nofile_limit)],
            volumes={
                str(files): {"bind": RUN, "mode": "rw"},
                str(subject.code): {"bind": "/code", "mode": "ro"},
            },
        )


@contextmanager
def warm(folder: Path, image: str, jobs: int) -> Iterator[Warm]:
    """A pool of NanoGrid with this image."""
    settings = Settings(
        data_dir=folder / "data",
        python_image=image,
        pull_images=False,
        pool_containers=2 * jobs,
        output_limit_bytes=LIMIT_BYTES,
        value_limit_bytes=LIMIT_BYTES,
    )
    rig = Rig(settings, folder / "code")
    rig.owner.start()
    try:
        yield Warm(rig)
    finally:
        rig.pool.close()
        rig.owner.stop()
        rig.engine.close()


def take_tests(client: docker.DockerClient, image: str, folder: Path) -> Path:
    """Copy CPython's package `test` out of an image. Return its path."""
    container = client.containers.create(image)
    try:
        place = f"/usr/lib/python{image.rpartition(':')[2]}/test"
        chunks, _ = container.get_archive(place)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            archive.extractall(folder)
    finally:
        container.remove()
    return folder / "test"


def modules_in(tests: Path) -> list[str]:
    """The names of all test modules in CPython's package `test`."""
    return sorted(
        path.stem
        for path in tests.glob("test_*")
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())
    )


def source_of(tests: Path, module: str) -> Path:
    """The file or the folder of a module."""
    file = tests / f"{module}.py"
    return file if file.exists() else tests / module
