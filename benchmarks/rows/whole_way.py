"""The whole way of a warm hello, SQS to Redis, compared with an empty Celery task on the same broker, in turn."""

from __future__ import annotations

import statistics

from benchmarks.figures import Goal, Line, Measured
from benchmarks.programs import HELLO
from benchmarks.setting import Setting
from benchmarks.stack import stack
from benchmarks.turns import in_turn
from nanogrid.result import ExecutionResult, StartKind

TITLE = "the whole way, SQS to Redis, of a warm hello and of a Celery task that does nothing"
HELLO_NAME = "nanogrid, warm hello"
NOTHING = "a Celery task that does nothing"
PHASES = ("fetch", "unpack", "acquire", "run", "collect", "store")


def measure(setting: Setting) -> Measured:
    """From before sending until the producer has the result; the difference of the medians is what NanoGrid adds."""
    results: list[ExecutionResult] = []
    with stack(setting) as here:
        request = here.request(HELLO)

        def hello() -> None:
            results.append(here.run(request, HELLO.prints))

        variants = {HELLO_NAME: hello, NOTHING: here.nothing}
        samples = in_turn(setting.row, variants, rounds=setting.rounds(300), warm_up=20)
    ours, nothing = samples[HELLO_NAME], samples[NOTHING]
    measured = results[-len(ours.values) :]
    warm = sum(result.start_kind is StartKind.WARM for result in measured)
    lines = (
        Line("median, less that of the empty task", ours.median - nothing.median, "ms", Goal(4)),
        Line("p95, less that of the empty task", ours.p95 - nothing.p95, "ms"),
        Line("warm starts among the measured", warm / len(measured) * 100, "%"),
    )
    return Measured(setting.row, TITLE, (ours, nothing), lines, (f"median phases: {_phases(measured)}",))


def _phases(results: list[ExecutionResult]) -> str:
    """The median of every phase that was measured, in milliseconds."""
    found = []
    for name in PHASES:
        values = [value for result in results if (value := getattr(result.phases, name)) is not None]
        if values:
            found.append(f"{name} {statistics.median(values):.2f} ms")
    return ", ".join(found)
