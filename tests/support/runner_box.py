"""One warm container under a test's control: the runner inside, its link, and runs of any files."""

from __future__ import annotations

import os
import selectors
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogrid.execution.container import users
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.container.hardening import WORKSPACE, Confinement, runner_options
from nanogrid.execution.container.link import Link, Message, Ready, RunEnded, RunnerListener, Unfit
from nanogrid.execution.container.slot import CODE, PACKAGES, Slot, in_memory
from nanogrid.execution.runner.programs import lay_out_programs
from nanogrid.settings import Settings

TIMEOUT_S = 30.0
PYTHON = ("python", "main.py")
LABEL = "nanogrid.test.runner"
UID = 65534
ENVIRONMENT = {
    "HOME": "/workspace",
    "LANG": "C.UTF-8",
    "NANOGRID_REQUEST_ID": "request",
    "NANOGRID_FUNCTION_ID": "function",
    "NANOGRID_TIMEOUT_MS": "30000",
    "NANOGRID_MEMORY_MB": "256",
    "NANOGRID_PAYLOAD": "/nanogrid/run/payload.json",
    "NANOGRID_RESULT": "/nanogrid/run/result.json",
}


@dataclass(frozen=True)
class Run:
    """What one run gave: the exit code as in a shell, both streams, how it ran, and the text of the result file."""

    exit_code: int
    out: bytes
    err: bytes
    how: str
    result: bytes
    ended: RunEnded
    took_ms: float
    """From before the request is sent until `ended` has arrived and both streams are read to their ends."""


@dataclass
class Box:
    """A running warm container. Wait for `ready` before a run."""

    engine: Engine
    id: str
    slot: Slot
    pid: int
    link: Link
    hello: Message
    is_ready: bool = False

    def place(self, code: Path, packages: Path | None = None) -> None:
        """Give the container its function."""
        self.slot.place(code, packages)

    def replace(self, code: Path, packages: Path | None = None) -> None:
        """Replace the container's function: only for tests, a real container keeps its function."""
        self.await_ready()
        for name in (CODE, PACKAGES):
            old = self.slot.path / name
            if old.exists():
                old.rename(self.slot.path / f"old-{uuid.uuid4().hex[:8]}")
        self.slot.place(code, packages)
        self.run(("true",), in_process=False)

    def await_ready(self) -> float:
        """Wait for `ready`. Return the milliseconds."""
        asked = time.monotonic()
        if not self.is_ready:
            message = self.receive()
            assert isinstance(message, Ready), message
            self.is_ready = True
        return (time.monotonic() - asked) * 1000

    def receive(self, timeout_s: float = TIMEOUT_S) -> Message:
        """Return the runner's next message."""
        message = self.link.receive(timeout_s)
        assert message is not None, f"the runner said nothing within {timeout_s:g} s"
        return message

    def run(
        self,
        argv: Sequence[str] = PYTHON,
        env: Mapping[str, str] | None = None,
        *,
        payload: Any = None,
        in_process: bool = True,
        compiler_cache: bool = False,
        kill_after_s: float | None = None,
    ) -> Run:
        """Run once, until the end."""
        began = time.monotonic()
        out, err = self.start(argv, env, payload=payload, in_process=in_process, compiler_cache=compiler_cache)
        streams, message = self._watch(out, err, kill_after_s)
        took_ms = (time.monotonic() - began) * 1000
        assert isinstance(message, RunEnded), message
        result = b""
        if message.result >= 0:
            result = os.pread(message.result, 1 << 20, 0)
            os.close(message.result)
        return Run(message.exit_code, streams[out], streams[err], message.how, result, message, took_ms)

    def start(
        self,
        argv: Sequence[str] = PYTHON,
        env: Mapping[str, str] | None = None,
        *,
        payload: Any = None,
        in_process: bool = True,
        compiler_cache: bool = False,
    ) -> tuple[int, int]:
        """Start a run. Return descriptors to read its stdout and stderr."""
        self.await_ready()
        stdin = in_memory(payload)
        out, out_writer = os.pipe()
        err, err_writer = os.pipe()
        for writer in (out_writer, err_writer):
            os.fchmod(writer, 0o666)
            os.fchown(writer, UID, UID)
        descriptors = (stdin, out_writer, err_writer)
        self.link.send_run(
            argv, {**ENVIRONMENT, **(env or {})}, descriptors, in_process=in_process, compiler_cache=compiler_cache
        )
        for descriptor in descriptors:
            os.close(descriptor)
        self.is_ready = False
        return out, err

    def _watch(self, out: int, err: int, kill_after_s: float | None) -> tuple[dict[int, bytes], Message]:
        streams = {out: b"", err: b""}
        message: Message | None = None
        deadline = time.monotonic() + TIMEOUT_S
        kill_at = None if kill_after_s is None else time.monotonic() + kill_after_s
        with selectors.DefaultSelector() as selector:
            for descriptor in (out, err, self.link.fileno()):
                selector.register(descriptor, selectors.EVENT_READ)
            while len(selector.get_map()) > 1 or message is None:
                assert time.monotonic() < deadline, f"no end of the run within {TIMEOUT_S:g} s, so far {streams}"
                for key, _ in selector.select(0.05):
                    if key.fd == self.link.fileno():
                        message = self.receive()
                        selector.unregister(key.fd)
                        if isinstance(message, Unfit):
                            return streams, message
                        if len(selector.get_map()) == 0:
                            break
                        continue
                    chunk = os.read(key.fd, 65536)
                    streams[key.fd] += chunk
                    if not chunk:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                if kill_at is not None and time.monotonic() > kill_at:
                    self.link.send_kill()
                    kill_at = None
                if message is not None and len(selector.get_map()) == 0:
                    break
        return streams, message


@dataclass(frozen=True)
class Usage:
    """Resources of a runner's first process: descriptors, resident memory, and the files of its slot."""

    descriptors: int
    memory_kb: int
    files: int


def limits(here: Box) -> Usage:
    """Resources of the first process between two runs."""
    here.await_ready()
    process = Path("/proc") / str(here.pid)
    memory = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return Usage(len(list((process / "fd").iterdir())), int(memory.split()[1]), len(list(here.slot.path.rglob("*"))))


def write_code(folder: Path, files: Mapping[str, str]) -> Path:
    """A folder of files as in the cache: read-only."""
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


@contextmanager
def box(folder: Path, image: str, **changes: Any) -> Iterator[Box]:
    """Yield a warm container of `image` whose runner has sent hello. It is removed at the end."""
    settings = Settings(data_dir=folder / "data", pull_images=False, learn_imports=changes.pop("learn_imports", True))
    confinement = Confinement(changes.pop("memory_mb", 256), changes.pop("cpus", 2.0), "none")
    engine = Engine(settings)
    programs = folder / f"programs-{uuid.uuid4().hex[:8]}"
    lay_out_programs(programs)
    known = folder / f"users-{uuid.uuid4().hex[:8]}"
    known.mkdir()
    users.lay_out(known, engine.files_of(engine.ensure_image(image), users.FILES, {LABEL: "1"}), UID, WORKSPACE)
    slot = Slot(folder / f"slot-{uuid.uuid4().hex[:8]}")
    slot.create()
    listener = RunnerListener(slot.control)
    options = runner_options(
        image,
        "python3",
        confinement,
        settings,
        slot_dir=str(slot.path),
        programs_dir=str(programs),
        users_dir=str(known),
        labels={LABEL: "1"},
        compiles=True,
    )
    options["HostConfig"]["Mounts"] += changes.pop("mounts", [])
    options["HostConfig"]["SecurityOpt"] += changes.pop("security", [])
    options["HostConfig"]["Tmpfs"].update(changes.pop("tmpfs", {}))
    assert not changes, f"unknown options {changes}"
    container = engine.create(f"nanogrid-test-runner-{uuid.uuid4().hex[:8]}", options)
    try:
        pid = engine.start(container)
        link = listener.accept(TIMEOUT_S, lambda: engine.end_of(container).running)
        listener.close()
        hello = link.receive(TIMEOUT_S)
        assert hello is not None
        yield Box(engine, container, slot, pid, link, hello)
        link.close()
    finally:
        engine.remove(container)
        engine.close()
        slot.remove()
