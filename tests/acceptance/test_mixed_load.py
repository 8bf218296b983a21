"""A thousand requests over twenty functions on one worker with two children. Wants the machine for itself."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nanogrid.client import Client
from nanogrid.execution.pool.snapshot import snapshot
from nanogrid.result import ExecutionResult, Outcome, StartKind
from tests.acceptance.conftest import assert_nothing_left, open_grid
from tests.support.functions import Functions
from tests.support.services import Service, wait_until

REQUESTS = 1000
SEED = 7
WAIT_S = 300.0


class Function:
    """One function, and what its result must be for a payload."""

    def __init__(self, files: str | dict[str, str], number: int, runtime: str = "python", handler: str = "") -> None:
        self.files, self.number, self.runtime, self.handler = files, number, runtime, handler
        self.template: dict[str, Any] = {}

    def upload(self, functions: Functions) -> None:
        """Put it into S3 once."""
        extra = {"handler": self.handler} if self.handler else {}
        self.template = functions.request(
            self.files, runtime=self.runtime, functionId=f"function-{self.number}", timeoutMs=60_000, **extra
        )

    def check(self, result: ExecutionResult, payload: int) -> None:
        """Every value is right, and none is another function's."""
        assert result.outcome is Outcome.SUCCEEDED, result.to_wire()
        if self.runtime == "cpp":
            assert result.stdout == f"{self.number} {payload}\n", result.to_wire()
        else:
            assert result.value == [self.number, payload * payload], result.to_wire()


def twenty() -> list[Function]:
    """Plain programs, programs that leave things behind, handlers, and C++ that compiles."""
    plain = (
        "import json, os, sys\njson.dump([{n}, json.load(sys.stdin) ** 2], open(os.environ['NANOGRID_RESULT'], 'w'))\n"
    )
    messy = (
        "import json, os, subprocess, sys\n"
        "assert not os.path.exists('left') and not os.path.exists('/tmp/left'), 'something was left'\n"
        "open('left', 'w').write('x'); open('/tmp/left', 'w').write('x')\n"
        "subprocess.Popen(['sleep', '600'])\n"
    ) + plain
    handler = "def run(event, context):\n    return [{n}, event ** 2]\n"
    source = '#include <cstdio>\nint main() {{ int n; std::scanf("%d", &n); std::printf("{n} %d\\n", n); }}\n'
    made = [Function(plain.format(n=n), n) for n in range(10)]
    made += [Function(messy.format(n=n), n) for n in range(10, 15)]
    made += [Function({"app.py": handler.format(n=n)}, n, handler="app.run") for n in range(15, 18)]
    made += [
        Function({"run.sh": "g++ main.cpp -o main && ./main", "main.cpp": source.format(n=n)}, n, "cpp")
        for n in range(18, 20)
    ]
    return made


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_thousand_mixed_requests(
    tmp_path: Path, aws_url: str, redis_server: Service, functions: Functions, unique: str
) -> None:
    """Every result is right, nearly every start is warm, and nothing is left behind."""
    url = f"redis://127.0.0.1:{redis_server.port}"
    with open_grid(
        tmp_path,
        aws_url=aws_url,
        redis_url=f"{url}/0",
        unique=unique,
        visibility_timeout_s=30,
    ) as grid:
        client, chance = Client(grid.settings), random.Random(SEED)
        every = twenty()
        for function in every:
            function.upload(functions)
        with grid.worker(app="nanogrid"):
            sent = {}
            for n in range(REQUESTS):
                function, payload = chance.choice(every), chance.randrange(1000)
                request_id = client.submit({**function.template, "requestId": f"{unique}-{n}", "payload": payload})
                sent[request_id] = (function, payload)
            results = [client.wait(request_id, WAIT_S) for request_id in sent]
            for result in results:
                function, payload = sent[result.request_id]
                function.check(result, payload)
            wait_until(
                lambda: all(shown.state != "leased" for shown in snapshot(grid.settings.data_dir)), "all is idle"
            )
        report(results)
        starts = Counter(result.start_kind for result in results)
        assert starts[StartKind.WARM] >= 0.9 * REQUESTS
        assert_nothing_left(grid.settings)


def report(results: list[ExecutionResult]) -> None:
    """Print the share of warm starts, and percentiles of each phase."""
    starts = Counter(result.start_kind.value for result in results if result.start_kind)
    print(f"\nstarts: {dict(starts)}, warm ratio {starts['warm'] / len(results):.3f}")
    for phase in ("fetch", "acquire", "run", "collect", "store"):
        values = sorted(getattr(result.phases, phase) or 0.0 for result in results)
        median, p95, p99 = (values[int(len(values) * share)] for share in (0.5, 0.95, 0.99))
        print(f"{phase} ms: median {median:.2f}, p95 {p95:.2f}, p99 {p99:.2f}")
