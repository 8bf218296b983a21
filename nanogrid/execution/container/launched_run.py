"""The host's side of a run in a launched container: its image has no Python, and it is created for this run alone.

The rule: one loop, one deadline, and exactly one reason for the end. Output is read from pipes that the container opens by
name, so only the kernel is between the function and this loop. `launch.sh` is the other side.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from contextlib import ExitStack

from nanogrid.errors import ContainerStartError
from nanogrid.execution.container.cgroup import Cgroup, Usage
from nanogrid.execution.container.report import EndReason, Result, RunReport, Stream
from nanogrid.execution.container.slot import Slot

CHUNK_BYTES = 65_536
DRAIN_S = 5.0


class LaunchedRun:
    """Watches one run. The launcher starts the command once its pipes are open here."""

    def __init__(self, slot: Slot, *, output_limit_bytes: int, result_limit_bytes: int) -> None:
        self._slot = slot
        self._result_limit_bytes = result_limit_bytes
        self._open = ExitStack()
        self._selector = self._open.enter_context(selectors.DefaultSelector())
        self._control = self._pipe(slot, "control")
        self._streams = {
            self._pipe(slot, "stdout"): Stream(output_limit_bytes),
            self._pipe(slot, "stderr"): Stream(output_limit_bytes),
        }
        self._lines = b""

    def __enter__(self) -> LaunchedRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(
        self,
        cgroup: Cgroup,
        *,
        start_timeout_s: float,
        timeout_s: float,
        stop: Callable[[], None],
        begun: Callable[[], None],
    ) -> RunReport:
        """Wait until the command ends. `begun` is called when it has started.

        `stop` ends the container and returns when no process in it is alive; it is called if the command did not end by
        itself. Raises ContainerStartError if the command does not start within `start_timeout_s`.
        """
        asked = time.monotonic()
        began_at = self._await_start(start_timeout_s)
        base_cpu_ns = cgroup.read().cpu_ns or 0
        started = time.monotonic()
        begun()
        ended, exit_code, ended_at = self._await_end(started + timeout_s)
        now = time.monotonic()
        # This process may have read both lines late: then the launcher's clock is more accurate (to 10 ms).
        duration_s = max(now - started, min(ended_at - began_at, now - asked))
        if ended is EndReason.TIMED_OUT:
            duration_s = max(duration_s, timeout_s)  # rounding may make the difference slightly smaller
        usage = cgroup.read()
        if ended is not EndReason.EXITED:
            stop()
        self._drain()
        if usage.cpu_ns is not None:
            usage = Usage(usage.peak_memory_bytes, max(0, usage.cpu_ns - base_cpu_ns), usage.oom_kills)
        stdout, stderr = self._streams.values()
        if ended is EndReason.EXITED and (stdout.truncated or stderr.truncated):
            ended = EndReason.OUTPUT_LIMIT
        return RunReport(ended, exit_code, stdout, stderr, duration_s * 1000, usage, self._result())

    def _result(self) -> Result:
        try:
            descriptor = os.open(self._slot.result, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # the container and its folder are gone
            return Result(0, None)
        try:
            return Result.read(descriptor, self._result_limit_bytes)
        finally:
            os.close(descriptor)

    def _pipe(self, slot: Slot, name: str) -> int:
        fd = os.open(slot.pipe(name), os.O_RDONLY | os.O_NONBLOCK)
        self._open.callback(os.close, fd)
        self._selector.register(fd, selectors.EVENT_READ)
        return fd

    def _await_start(self, timeout_s: float) -> float:
        """Wait until the command starts. Return the uptime at that moment."""
        deadline = time.monotonic() + timeout_s
        while True:
            line = self._next_line(deadline)
            if line is not None and line.startswith("started "):
                return _seconds(line.removeprefix("started "))
            if line is None:
                raise ContainerStartError(f"the container did not start its command within {timeout_s:g} s")
            if line == "":
                raise ContainerStartError(
                    "the container ended before it started its command: check that the image has a /bin/sh"
                )
            raise ContainerStartError(f"the container could not copy the code: {line.removeprefix('unready').strip()}")

    def _await_end(self, deadline: float) -> tuple[EndReason, int | None, float]:
        """Wait until the command ends. Return how, its exit code, and the uptime at that moment (0 if unknown)."""
        while True:
            line = self._next_line(deadline)
            if line is None:
                return EndReason.TIMED_OUT, None, 0.0
            if line == "":
                return EndReason.LOST, None, 0.0
            if line == "output":
                return EndReason.OUTPUT_LIMIT, None, 0.0
            word, code, uptime = (*line.split(" "), "", "")[:3]
            if word == "exited" and code.isdigit():
                return EndReason.EXITED, int(code), _seconds(uptime)

    def _next_line(self, deadline: float) -> str | None:
        """The launcher's next line; "" if it is gone, "output" if a stream passed its limit, None at the deadline.

        Consumes only whole lines; the rest stays for the next call.
        """
        if time.monotonic() >= deadline:
            return None
        while b"\n" not in self._lines:
            if any(stream.truncated for stream in self._streams.values()):
                return "output"
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                return None
            for key, _ in ready:
                if key.fd == self._control:
                    chunk = os.read(key.fd, CHUNK_BYTES)
                    if not chunk:
                        return ""
                    self._lines = (self._lines + chunk)[-CHUNK_BYTES:]
                else:
                    self._read(key.fd)
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode("utf-8", "replace").strip() or "blank"

    def _read(self, fd: int) -> bool:
        """Read what is available. Return False at the end of the stream, when no process has it open any more."""
        chunk = os.read(fd, CHUNK_BYTES)
        if chunk:
            self._streams[fd].add(chunk)
            return True
        self._selector.unregister(fd)
        return False

    def _drain(self) -> None:
        """Read both streams to their ends. All writers are dead or dying, so both streams end."""
        self._selector.unregister(self._control)
        deadline = time.monotonic() + DRAIN_S
        while len(self._selector.get_map()) and time.monotonic() < deadline:
            ready = self._selector.select(0.05)
            if not ready:  # a stream that was never opened has no end to wait for
                return
            for key, _ in ready:
                self._read(key.fd)


def _seconds(uptime: str) -> float:
    """The uptime that the launcher reports, or 0 for other text: a function may write to the launcher's pipe."""
    try:
        seconds = float(uptime)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0
