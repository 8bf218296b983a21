"""One warm container under a test's own hands: the runner inside, its link, and runs of whatever files it has got."""

from __future__ import annotations

import os
import selectors
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanogrid.container.engine import Engine
from nanogrid.container.hardening import Confinement, runner_options
from nanogrid.container.link import Link, Listener, Message, Ready, RunEnded, Unfit
from nanogrid.container.slot import CODE, Slot
from nanogrid.runner.programs import lay_out_programs
from nanogrid.settings import Settings

TIMEOUT_S = 30.0
PYTHON = ("python", "main.py")
LABEL = "nanogrid.test.runner"


@dataclass(frozen=True)
class Run:
    """What one run gave: exit code as the shell counts, both streams, how it ran, and the text of the result file."""

    exit_code: int
    out: bytes
    err: bytes
    how: str
    result: bytes
    ended: RunEnded
    took_ms: float
    """From before the request is sent until `ended` has come and both streams have been read to their ends."""


@dataclass
class Box:
    """A running warm container. `ready` must have come before a run."""

    engine: Engine
    id: str
    slot: Slot
    link: Link
    is_ready: bool = False
    last: list[Message] = field(default_factory=list)

    def place(self, code: Path, packages: Path | None = None) -> None:
        """Give the container its function."""
        self.slot.place(code, packages)

    def replace(self, code: Path) -> None:
        """Give the container another function in place of the one it has: for tests alone, no container is used so."""
        self.await_ready()
        old = self.slot.path / CODE
        if old.exists():
            old.rename(self.slot.path / f"old-{uuid.uuid4().hex[:8]}")
        self.slot.place(code, None)
        self.run(("true",), in_process=False)

    def await_ready(self) -> float:
        """Wait for `ready`; milliseconds waited."""
        asked = time.monotonic()
        if not self.is_ready:
            message = self.receive()
            assert isinstance(message, Ready), message
            self.is_ready = True
        return (time.monotonic() - asked) * 1000

    def receive(self, timeout_s: float = TIMEOUT_S) -> Message:
        """The runner's next message."""
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
        """Run once, to the end."""
        self.await_ready()
        self.slot.clear_result()
        standard = {
            "HOME": "/workspace",
            "LANG": "C.UTF-8",
            "NANOGRID_REQUEST_ID": "request",
            "NANOGRID_FUNCTION_ID": "function",
            "NANOGRID_TIMEOUT_MS": "30000",
            "NANOGRID_MEMORY_MB": "256",
            "NANOGRID_PAYLOAD": "/nanogrid/payload.json",
            "NANOGRID_RESULT": "/nanogrid/result.json",
            **(env or {}),
        }
        stdin = self.slot.open_payload(payload)
        out, out_writer = os.pipe()
        err, err_writer = os.pipe()
        for writer in (out_writer, err_writer):
            os.fchmod(writer, 0o666)
            os.fchown(writer, 65534, 65534)
        began = time.monotonic()
        self.link.send_run(
            argv, standard, (stdin, out_writer, err_writer), in_process=in_process, compiler_cache=compiler_cache
        )
        for descriptor in (stdin, out_writer, err_writer):
            os.close(descriptor)
        self.is_ready = False
        streams, message = self._watch(out, err, kill_after_s)
        took_ms = (time.monotonic() - began) * 1000
        assert isinstance(message, RunEnded), message
        result = self.slot.read_result(1 << 20) or b""
        return Run(message.exit_code, streams[out], streams[err], message.how, result, message, took_ms)

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


@contextmanager
def box(folder: Path, image: str, **changes: Any) -> Iterator[Box]:
    """A warm container of `image` whose runner has said hello; removed at the end."""
    settings = Settings(data_dir=folder / "data", pull_images=False)
    limits = Confinement(changes.pop("memory_mb", 256), changes.pop("cpus", 2.0), "none")
    engine = Engine(settings)
    programs = folder / f"programs-{uuid.uuid4().hex[:8]}"
    lay_out_programs(programs)
    slot = Slot(folder / f"slot-{uuid.uuid4().hex[:8]}")
    slot.create()
    listener = Listener(slot.control)
    options = runner_options(
        image, "python3", limits, settings, slot_dir=str(slot.path), programs_dir=str(programs), labels={LABEL: "1"}
    )
    options["Cmd"] += changes.pop("arguments", [])
    options["HostConfig"].update(changes.pop("host_config", {}))
    assert not changes, f"unknown options {changes}"
    container = engine.create(f"nanogrid-test-runner-{uuid.uuid4().hex[:8]}", options)
    try:
        engine.start(container)
        link = listener.accept(TIMEOUT_S, lambda: engine.end_of(container).running)
        listener.close()
        here = Box(engine, container, slot, link)
        here.last.append(here.receive())
        yield here
        link.close()
    finally:
        engine.remove(container)
        engine.close()
        slot.remove()
