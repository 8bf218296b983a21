"""The host's side of one run in a warm container: hand over three pipes, read them, watch the clock and the runner.

The rule: one loop, one deadline, and exactly one reason why it ended. The function writes straight into the pipes that
this loop reads; the runner says when it has ended and everything it left behind is gone, so both pipes have an end.
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
"""How long a runner may take to end what it was told to end. It takes milliseconds; then it is taken for lost."""

OUTPUT_WAITS_S = 0.003
"""For so long output stays in its pipes: most runs are over by then, and are not to be held up by who reads each of their lines.
A function that writes more than a pipe holds (64 KiB) waits for that time at most, once."""

READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


@dataclass(frozen=True)
class Program:
    """What is to be run. `in_process`: the runner's own interpreter may run it without starting another one."""

    argv: Sequence[str]
    env: Mapping[str, str]
    in_process: bool
    compiler_cache: bool


class Run:
    """One run. Made, used and forgotten within one lease."""

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
        """Run it. `payload` is a descriptor of the payload's text. `thaw` lets a paused container go on; it is called when the request is there already. `begun` is called
        beside the function's first steps.

        Raises ContainerStartError where the runner could not start the command, ContainerLostError where somebody froze
        the container from outside.
        """
        with ExitStack() as resources:
            # Before the request: on a loaded host a short run is over before this process has its turn again.
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
                duration_ms = max(duration_ms, timeout_s * 1000)  # a sum of fractions may be smaller by the last digit
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
        """Make a pipe for a stream and return the end that the function writes to; it belongs to the function's user."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writing, True)
        # Ours of the writing end is closed last: else the function's end would wake us, and the runner's word again.
        resources.callback(os.close, reading)
        resources.callback(os.close, writing)
        with suppress(OSError):  # not root: all that fails is to open /dev/stdout by its name
            os.fchown(writing, self._uid, self._uid)
        self._by_fd[reading] = stream
        return writing

    def _watch(self, deadline: float) -> EndReason:
        """Read until the run has ended, was too slow, or wrote too much."""
        control = self._link.fileno()
        first_s = min(OUTPUT_WAITS_S, deadline - time.monotonic())
        if first_s <= 0 or not self._poll.poll(first_s * 1000):
            for reading in self._by_fd:
                self._poll.register(reading, READABLE)
        while True:
            wait_s = deadline - time.monotonic()
            events = self._poll.poll(wait_s * 1000) if wait_s > 0 else []
            if not events and time.monotonic() >= deadline:
                if self._cgroup.is_frozen():
                    raise ContainerLostError("the container was paused by somebody else while the function ran")
                return EndReason.TIMED_OUT
            for fd, _ in events:
                if fd != control:
                    self._read(fd)
                elif not self._hear():
                    return EndReason.LOST
            if self._ended:
                return EndReason.EXITED
            if any(stream.truncated for stream in self._streams):
                return EndReason.OUTPUT_LIMIT

    def _hear(self) -> bool:
        """Take the runner's word. False when it is gone."""
        try:
            message = self._link.receive(0)
        except ContainerLostError:
            return False
        if isinstance(message, Unfit):
            raise ContainerStartError(f"the container could not run the function: {message.reason}")
        if isinstance(message, RunEnded):
            self._ended = message
        if isinstance(message, Ready):
            raise ContainerLostError("the process that was to run the function was ended before it had begun")
        return True

    def _kill(self) -> None:
        """Have the runner end everything of the run. Where it does not answer, the owner destroys the container anyway."""
        deadline = time.monotonic() + KILL_S
        with suppress(ContainerLostError):
            self._link.send_kill()
            while self._ended is None and (message := self._link.receive(deadline - time.monotonic())) is not None:
                if isinstance(message, RunEnded):
                    self._ended = message

    def _read(self, fd: int) -> bool:
        """Read what is there. False at the end, and when there is nothing right now."""
        try:
            chunk = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            return False
        self._by_fd[fd].add(chunk)
        return True

    def _drain(self) -> None:
        """Read what is left in both pipes. No process of the run is alive, so nothing more comes."""
        for fd, stream in self._by_fd.items():
            while not stream.truncated and self._read(fd):
                pass

    def _duration_ms(self, sent: float, *, cut_short: bool) -> float:
        """By the runner's clock, from the function's first step; where it was ended from here, from where its time counts.

        When that step was the spare says: no time before the request is believed.
        """
        most_ms = (time.monotonic() - sent) * 1000
        if self._ended is None or cut_short:
            return most_ms
        return min(max(0.0, (self._ended.ended_ns - self._ended.started_ns) / 1e6), most_ms)
