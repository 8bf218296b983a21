"""Runs a function at several sizes in turn, and keeps a sample of each run.

The rule: sizes take turns, run by run, so that whatever changes on the host meanwhile meets all of them; one run is under
way at a time.

All sizes share the function's containers, which are given other limits for each run. A round of warm-ups, which do not
count, makes them; after a run that costs its container (out of memory, timed out) another warm-up does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nanogrid.result import ExecutionResult, Outcome, StartKind
from nanogrid.tuner.sizes import MEASURED, Measured, Sample, Size, summarise

if TYPE_CHECKING:
    from nanogrid.client import Client

ID_LENGTH = 200
"""Longest function id."""


def measured_id(function_id: str) -> str:
    """The id under which a function is measured: its own would mix up with its real runs, in the pool and in the tuner."""
    return f"{MEASURED}{function_id}"[:ID_LENGTH]


def with_size(request: dict[str, Any], size: Size) -> dict[str, Any]:
    """The request at one size, without a request id: each run gets its own when it is sent."""
    sized = {**request, "memoryMb": size.memory_mb, "cpus": size.cpus}
    sized.pop("requestId", None)
    return sized


class Measurement:
    """The runs of one function at several sizes. A size is left at its first run that does not succeed."""

    def __init__(self, sizes: Sequence[Size], run: Callable[[Size], ExecutionResult]) -> None:
        self.samples: dict[Size, list[Sample]] = {size: [] for size in sorted(sizes)}
        self.failures: dict[Size, ExecutionResult] = {}
        self._run = run
        self._container_is_there = False

    @property
    def sizes_left(self) -> list[Size]:
        """The sizes at which every run succeeded so far, the smallest first."""
        return [size for size in self.samples if size not in self.failures]

    @property
    def measured(self) -> list[Measured]:
        """What all runs came to, the smallest size first."""
        return [summarise(size, samples) for size, samples in self.samples.items()]

    def measure(self, runs: int, tell: Callable[[int, Size], None]) -> None:
        """One round of warm-ups and `runs` rounds that count; `tell` hears the number of each round (0: warm-ups) and size."""
        for number in range(runs + 1):
            for size in self.sizes_left:
                tell(number, size)
                if number and not self._container_is_there:
                    self._take(size, counted=False)
                if size not in self.failures:
                    self._take(size, counted=number > 0)

    def _take(self, size: Size, *, counted: bool) -> None:
        result = self._run(size)
        self.samples[size].append(sample_of(result, counted=counted))
        self._container_is_there = result.outcome in (Outcome.SUCCEEDED, Outcome.FAILED)
        if not result.success:
            self.failures[size] = result


def sample_of(result: ExecutionResult, *, counted: bool) -> Sample:
    """One run as a sample. The time is the phase `run`, which is finer than the whole milliseconds of `durationMillis`."""
    return Sample(
        result.outcome,
        result.duration_millis if result.phases.run is None else result.phases.run,
        result.peak_memory_bytes,
        result.cpu_millis,
        warm=result.start_kind is StartKind.WARM,
        counted=counted,
    )


def run_at(client: Client, request: dict[str, Any], size: Size, tell: Callable[[str], None]) -> ExecutionResult:
    """Send the request at this size and wait for its result. It is cancelled when the waiting is interrupted."""
    from nanogrid.cli.progress import watch

    request_id = client.submit(with_size(request, size))
    try:
        return watch(client, request_id, None, tell)
    except KeyboardInterrupt:
        client.cancel(request_id)
        raise
