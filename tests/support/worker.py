"""A NanoGrid for one test: settings, an app to send with, and worker and Flower as processes.

Each process is stopped by its handle; its output goes to a file, which a failing wait shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanogrid.celery import NanoGrid, make_app
from nanogrid.settings import Settings
from tests.support.services import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROBE = "tests.support.probe"
OWN_VARIABLES = ("NANOGRID_", "AWS_", "FLOWER_")


def environment(settings: Settings) -> dict[str, str]:
    """Environment of a process with these settings: the explicitly given ones, and test credentials."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OWN_VARIABLES) or name == "AWS_CA_BUNDLE"
    }
    return {**inherited, **variables(settings), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def variables(settings: Settings) -> dict[str, str]:
    """Variables for a process, here or in a container: the explicitly given settings, and test credentials."""
    given = settings.model_dump(mode="json", include=settings.model_fields_set)
    return {
        **{f"NANOGRID_{name.upper()}": _text(value) for name, value in given.items()},
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class CeleryProcess:
    """One `celery -A ...` process."""

    def __init__(
        self,
        grid: Grid,
        app: str,
        *arguments: str,
        log: Path,
        env: dict[str, str] | None = None,
        only_env: dict[str, str] | None = None,
    ) -> None:
        """`env` is added to the variables of these settings; `only_env` replaces them all."""
        self.grid, self.log = grid, log
        self._argv = [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, *arguments]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self._argv,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**environment(grid.settings), **(env or {})} if only_env is None else only_env,
            )

    def alive(self) -> bool:
        """True; fails with the end of the log if the process is gone."""
        assert self.process.poll() is None, f"{self._argv} ended:\n{self.log.read_text()[-3000:]}"
        return True

    def stop(self, timeout_s: float = 20.0) -> None:
        """Warm shutdown."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"{self._argv} did not end:\n{self.log.read_text()[-3000:]}") from None


class Worker(CeleryProcess):
    """`celery -A ... worker -Q ...`."""

    def __init__(self, grid: Grid, name: str, app: str, queues: str, env: dict[str, str] | None = None) -> None:
        self.name = name
        arguments = ("worker", "-Q", queues, "-l", "info", "-n", name)
        super().__init__(grid, app, *arguments, log=grid.folder / f"{name}.log", env=env)

    def answers(self) -> bool:
        """Whether the worker answers a ping."""
        return self.alive() and bool(self.grid.app.control.ping(destination=[self.name], timeout=1.0))

    def said(self, text: str) -> bool:
        """Whether the text is in the worker's log."""
        return self.alive() and text in self.log.read_text()


class Flower(CeleryProcess):
    """`celery -A ... flower`."""

    def __init__(
        self,
        grid: Grid,
        app: str,
        *options: str,
        env: dict[str, str] | None = None,
        only_env: dict[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        log = grid.folder / "flower.log"
        super().__init__(grid, app, "flower", f"--port={self.port}", *options, log=log, env=env, only_env=only_env)

    def healthy(self) -> bool:
        """Whether the web server answers."""
        try:
            return self.alive() and self.get("/healthcheck")[0] == 200
        except urllib.error.URLError:
            return False

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and body of a GET."""
        return self._ask("GET", path, None, headers)

    def post(self, path: str, body: object = None, **headers: str) -> tuple[int, str]:
        """Status and body of a POST with a JSON body."""
        return self._ask("POST", path, json.dumps(body if body is not None else {}), headers)

    def api(self, path: str) -> Any:
        """The JSON of a GET that must succeed."""
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> tuple[int, str]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(  # a loopback URL of our own
            self.url + path, method=method, data=None if body is None else body.encode(), headers=names
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


class Grid:
    """Settings, a folder, and an app of this process that sends and commands with these settings."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.app: NanoGrid = make_app(settings)

    @contextmanager
    def worker(
        self,
        name: str = "w1@test",
        *,
        app: str = PROBE,
        queues: str = "python,cpp",
        reachable: bool = True,
        env: dict[str, str] | None = None,
    ) -> Iterator[Worker]:
        """A worker, ready for tasks; `reachable` says whether it can answer a ping."""
        worker = Worker(self, name, app, queues, env)
        try:
            wait_until(lambda: worker.said(f"{name} ready."), f"{name} is ready")
            if reachable:
                wait_until(worker.answers, f"{name} answers a ping")
            yield worker
        finally:
            worker.stop()

    @contextmanager
    def flower(
        self,
        *options: str,
        app: str = PROBE,
        env: dict[str, str] | None = None,
        only_env: dict[str, str] | None = None,
    ) -> Iterator[Flower]:
        """Flower, ready for requests."""
        flower = Flower(self, app, *options, env=env, only_env=only_env)
        try:
            wait_until(flower.healthy, "Flower answers")
            yield flower
        finally:
            flower.stop()

    def celery(
        self, *arguments: str, app: str = "nanogrid", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a `celery -A ...` command to its end."""
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
            env={**environment(self.settings), **(env or {})},
        )

    def close(self) -> None:
        """Close what the app of this process opened."""
        self.app.close()


def settings_for(*, aws_url: str, redis_url: str, data_dir: Path, queue_prefix: str, **changes: Any) -> Settings:
    """Settings of a NanoGrid that is up for a test. Monitoring uses the Redis database after that of `redis_url`."""
    server, _, database = redis_url.rpartition("/")
    return Settings(
        **{
            "sqs_endpoint_url": aws_url,
            "s3_endpoint_url": aws_url,
            "result_url": redis_url,
            "monitor_url": f"{server}/{int(database) + 1}",
            "data_dir": data_dir,
            "create_queues": True,
            "queue_prefix": queue_prefix,
            "pull_images": False,
            "concurrency": 2,
            **changes,
        }
    )


@contextmanager
def grid(folder: Path, *, aws_url: str, redis_url: str, unique: str, **changes: Any) -> Iterator[Grid]:
    """A NanoGrid whose queues have the prefix `unique`. `changes` are settings that differ from the usual ones."""
    data_dir = folder / "data"
    data_dir.mkdir()
    settings = {"receive_wait_s": 2, "metrics_address": "127.0.0.1:0", **changes}
    made = Grid(
        settings_for(aws_url=aws_url, redis_url=redis_url, data_dir=data_dir, queue_prefix=f"{unique}-", **settings),
        folder,
    )
    try:
        yield made
    finally:
        made.close()
