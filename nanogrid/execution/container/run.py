"""The host's side of one run in a warm container: pass on three descriptors, read two pipes, watch the clock and the runner.

The rule: one loop, one deadline, and exactly one reason for the end. The function writes directly into the pipes that this
loop reads. The runner reports when it has ended and all processes it left behind are gone, so both pipes have an end.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from nanogrid.errors import ContainerLostError, ContainerStartError
from nanogrid.execution.container.cgroup import Cgroup, Gauge
from nanogrid.execution.container.link import Link, Ready, RunEnded, Unfit
from nanogrid.execution.container.report import EndReason, Result, RunReport, Stream

CHUNK_BYTES = 65_536
KILL_S = 10.0
"""How long a runner may take to kill a run. It normally takes milliseconds; after this time the runner counts as lost."""

OUTPUT_WAITS_S = 0.003
"""How long output stays in its pipes before it is read. Most runs end within this time, and reading line by line would slow them
down. A function that writes more than a pipe holds (64 KiB) waits for at most this time, once."""

READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


@dataclass(frozen=True)
class Program:
    """What to run. `in_process`: the runner's own interpreter may run it, without starting another one."""

    argv: Sequence[str]
    env: Mapping[str, str]
    in_process: bool
    compiler_cache: bool


class Run:
    """One run. Created and used within one lease."""

    def __init__(
        self,
        link: Link,
        cgroup: Cgroup,
        *,
        output_limit_bytes: int,
        result_limit_bytes: int,
        uid: int,
        used_before: bool,
    ) -> None:
        self._link = link
        self._cgroup = cgroup
        self._result_limit_bytes = result_limit_bytes
        self._uid = uid
        self._used_before = used_before
        self._poll = select.poll()
        self._streams = Stream(output_limit_bytes), Stream(output_limit_bytes)
        self._by_fd: dict[int, Stream] = {}
        self._ended: RunEnded | None = None

    def run(
        self, program: Program, payload: int, *, timeout_s: float, thaw: Callable[[], None], begun: Callable[[], None]
    ) -> RunReport:
        """Run the program. `payload` is a descriptor of the payload's text.

        `thaw` thaws a paused container; it is called after the request was sent. `begun` is called while the function starts.
        Raises ContainerStartError if the runner could not start the command, ContainerLostError if somebody froze the
        container from outside.
        """
        with ExitStack() as resources:
            # Before the request: on a loaded host, a short run ends before this process gets the CPU again.
            gauge = Gauge(self._cgroup, used_before=self._used_before)
            resources.callback(gauge.close)
            stdout, stderr = (self._pipe(resources, stream) for stream in self._streams)
            self._poll.register(self._link.fileno(), READABLE)
            self._link.send_run(
                program.argv,
                program.env,
                (payload, stdout, stderr),
                in_process=program.in_process,
                compiler_cache=program.compiler_cache,
            )
            sent = time.monotonic()
            thaw()
            begun()
            ended = self._watch(sent + timeout_s)
            if cut_short := ended in (EndReason.TIMED_OUT, EndReason.OUTPUT_LIMIT):
                self._kill()
            duration_ms = self._duration_ms(sent, cut_short=cut_short)
            if ended is EndReason.TIMED_OUT:
                duration_ms = max(duration_ms, timeout_s * 1000)  # rounding may make the difference slightly smaller
            usage = gauge.read()
            self._drain()
            result = self._result(resources)
        if ended is EndReason.EXITED and any(stream.truncated for stream in self._streams):
            ended = EndReason.OUTPUT_LIMIT
        return RunReport(
            ended,
            self._ended.exit_code if ended is EndReason.EXITED and self._ended else None,
            *self._streams,
            duration_ms,
            usage,
            result,
        )

    def _result(self, resources: ExitStack) -> Result:
        if self._ended is None or self._ended.result < 0:
            return Result(0, None)
        resources.callback(os.close, self._ended.result)
        return Result.read(self._ended.result, self._result_limit_bytes)

    def _pipe(self, resources: ExitStack, stream: Stream) -> int:
        """Create a pipe for a stream and return the end that the function writes to; it belongs to the function's user."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)
        # Our copy of the writing end is closed last: otherwise the function's end would wake this loop, and the runner's
        # message would wake it again.
        resources.callback(os.close, reading)
        resources.callback(os.close, writing)
        with suppress(OSError):  # not root: then only opening /dev/stdout by name fails
            os.fchown(writing, self._uid, self._uid)
        self._by_fd[reading] = stream
        return writing

    def _watch(self, deadline: float) -> EndReason:
        """Read until the run ends, exceeds its time, or writes too much."""
        control = self._link.fileno()
        first_s = min(OUTPUT_WAITS_S, deadline - time.monotonic())
        events = self._poll.poll(first_s * 1000) if first_s > 0 else []
        if not events:
            for reading in self._by_fd:
                self._poll.register(reading, READABLE)
        while True:
            wait_s = deadline - time.monotonic()
            if not events and wait_s > 0:
                events = self._poll.poll(wait_s * 1000)
            if not events and time.monotonic() >= deadline:
                if self._cgroup.is_frozen():
                    raise ContainerLostError("the container was paused by somebody else while the function ran")
                return EndReason.TIMED_OUT
            for fd, _ in events:
                if fd != control:
                    self._read(fd)
                elif not self._receive():
                    return EndReason.LOST
            events = []
            if self._ended:
                return EndReason.EXITED
            if any(stream.truncated for stream in self._streams):
                return EndReason.OUTPUT_LIMIT

    def _receive(self) -> bool:
        """Receive the runner's message. Return False if the runner is gone."""
        try:
            message = self._link.receive(0)
        except ContainerLostError:
            return False
        if isinstance(message, Unfit):
            raise ContainerStartError(f"the container could not run the function: {message.reason}")
        if isinstance(message, RunEnded):
            self._ended = message
        if isinstance(message, Ready):
            raise ContainerLostError("the process that was about to run the function was killed before it started")
        return True

    def _kill(self) -> None:
        """Let the runner kill everything of the run. If it does not answer, the owner destroys the container anyway."""
        deadline = time.monotonic() + KILL_S
        with suppress(ContainerLostError):
            self._link.send_kill()
            while self._ended is None and (message := self._link.receive(deadline - time.monotonic())) is not None:
                if isinstance(message, RunEnded):
                    self._ended = message

    def _read(self, fd: int) -> bool:
        """Read what is available. Return False at the end, or if nothing is available now."""
        try:
            chunk = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            return False
        self._by_fd[fd].add(chunk)
        return True

    def _drain(self) -> None:
        """Read what is left in both pipes. No process of the run is alive, so nothing more arrives."""
        for fd, stream in self._by_fd.items():
            while not stream.truncated and self._read(fd):
                pass

    def _duration_ms(self, sent: float, *, cut_short: bool) -> float:
        """The duration by the runner's clock, from the function's first step. A run that was killed here counts from the request.

        The spare reports when that step was, and is not trusted: the duration is at most the time since the request.
        """
        most_ms = (time.monotonic() - sent) * 1000
        if self._ended is None or cut_short:
            return most_ms
        return min(max(0.0, (self._ended.ended_ns - self._ended.started_ns) / 1e6), most_ms)
