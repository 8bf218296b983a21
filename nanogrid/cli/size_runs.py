"""Runs a function at several sizes in turn, and keeps a sample of each run.

The rule: sizes take turns, run by run, so that changes on the host affect all of them equally; there is one run at a time.

All sizes share the function's containers, whose limits change for each run. A round of warm-ups, which do not count, creates
the containers; after a run that destroys its container (out of memory, timed out), another warm-up creates a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nanogrid.result import ExecutionResult, Outcome, StartKind
from nanogrid.tuner.sizes import MEASURED, Measurement, Size, SizeSample, summarize

if TYPE_CHECKING:
    from nanogrid.client import Client

ID_LENGTH = 200
"""Longest function id."""


def measured_id(function_id: str) -> str:
    """The id under which a function is measured: its own id would mix these runs with its real runs, in pool and tuner."""
    return f"{MEASURED}{function_id}"[:ID_LENGTH]


def with_size(request: dict[str, Any], size: Size) -> dict[str, Any]:
    """The request at one size, without a request id: each run gets a new one when it is sent."""
    sized = {**request, "memoryMb": size.memory_mb, "cpus": size.cpus}
    sized.pop("requestId", None)
    return sized


class SizeRuns:
    """The runs of one function at several sizes. A size is dropped after its first run that does not succeed."""

    def __init__(self, sizes: Sequence[Size], run: Callable[[Size], ExecutionResult]) -> None:
        self.samples: dict[Size, list[SizeSample]] = {size: [] for size in sorted(sizes)}
        self.failures: dict[Size, ExecutionResult] = {}
        self._run = run
        self._has_container = False

    @property
    def sizes_left(self) -> list[Size]:
        """The sizes at which every run has succeeded so far, smallest first."""
        return [size for size in self.samples if size not in self.failures]

    @property
    def measured(self) -> list[Measurement]:
        """The summary of all runs at each size, smallest first."""
        return [summarize(size, samples) for size, samples in self.samples.items()]

    def measure(self, runs: int, begin: Callable[[int, Size], None]) -> None:
        """One round of warm-ups and `runs` rounds that count. Each run calls `begin` with its round (0: warm-ups) and size."""
        for number in range(runs + 1):
            for size in self.sizes_left:
                begin(number, size)
                if number and not self._has_container:
                    self._take(size, counted=False)
                if size not in self.failures:
                    self._take(size, counted=number > 0)

    def _take(self, size: Size, *, counted: bool) -> None:
        result = self._run(size)
        self.samples[size].append(sample_of(result, counted=counted))
        self._has_container = result.outcome in (Outcome.SUCCEEDED, Outcome.FAILED)
        if not result.success:
            self.failures[size] = result


def sample_of(result: ExecutionResult, *, counted: bool) -> SizeSample:
    """One run as a sample. The time is the phase `run`, which is finer than the whole milliseconds of `durationMillis`."""
    return SizeSample(
        result.outcome,
        result.duration_millis if result.phases.run is None else result.phases.run,
        result.peak_memory_bytes,
        result.cpu_millis,
        warm=result.start_kind is StartKind.WARM,
        counted=counted,
    )


def run_at(client: Client, request: dict[str, Any], size: Size, show: Callable[[str], None]) -> ExecutionResult:
    """Send the request at this size and wait for its result. An interrupt cancels the request."""
    from nanogrid.cli.progress import watch

    request_id = client.submit(with_size(request, size))
    try:
        return watch(client, request_id, None, show)
    except KeyboardInterrupt:
        client.cancel(request_id)
        raise
