"""A real Prometheus scrapes a real worker under a load with all outcomes; the tests query it as dashboard and alerts do."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanogrid.client import Client
from nanogrid.connections.sqs import sqs_client
from nanogrid.execution.pool.snapshot import snapshot
from nanogrid.metrics.address import published
from nanogrid.result import Outcome
from nanogrid.sqs import queues
from tests.acceptance.conftest import OpenGrid
from tests.support.functions import FAIL, HELLO, HUNGRY, SLEEP, Functions
from tests.support.prometheus import SHIPPED, Prometheus
from tests.support.services import running, wait_until
from tests.support.worker import ROOT, Grid, Worker

RANGE = "1m"
WAIT_S = 60.0
ENDLESS = "while True: print('x' * 1000)"
SELECTOR = re.compile(r"\b((?:nanogrid|process)_[a-z_]+|up)(\{[^}]*\})?")
DASHBOARD = json.loads((SHIPPED / "nanogrid-dashboard.json").read_text())


@pytest.fixture(scope="module")
def grid(module_grid: OpenGrid) -> Iterator[Grid]:
    """A NanoGrid whose workers check their parts once a second."""
    with module_grid(
        metrics_look_s=1, retry_backoff_s=0.1, retry_backoff_max_s=0.2, max_attempts=2, dead_letter_check_s=1
    ) as here:
        yield here


class Port:
    """The HTTP port of a worker."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def json(self, path: str) -> tuple[int, Any]:
        """Status and content."""
        status, body = self.get(path)
        return status, json.loads(body)


@pytest.fixture(scope="module")
def worker(grid: Grid) -> Iterator[Worker]:
    """The worker that is scraped."""
    with grid.worker(app="nanogrid") as running_worker:
        yield running_worker


@pytest.fixture(scope="module")
def port(grid: Grid, worker: Worker) -> Port:
    """The worker's port, found as any process of the host finds it."""
    ((_, address),) = published(grid.settings.data_dir)
    return Port(address.url)


@pytest.fixture(scope="module")
def prometheus(port: Port, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, which has scraped the worker before the load starts."""
    made = Prometheus(tmp_path_factory.mktemp("prometheus"), port.url.removeprefix("http://"))
    with running(made.service):
        wait_until(lambda: made.value('up{job="nanogrid"}') == 1, "the worker is scraped")
        yield made


@pytest.fixture(scope="module")
def load(grid: Grid, prometheus: Prometheus, functions: Functions) -> Counter[Outcome]:
    """Requests of every kind and their results, all of them scraped by Prometheus."""
    client = Client(grid.settings)
    sent = [client.submit(functions.request(HELLO)) for _ in range(12)]
    programs: list[tuple[str | dict[str, str], dict[str, Any]]] = [
        (FAIL, {}),
        ({"run.sh": "echo no compiler needed"}, {"runtime": "cpp"}),
        (HUNGRY, {"memoryMb": 64}),
        (HUNGRY, {"memoryMb": 64}),
        (ENDLESS, {}),
        (SLEEP, {"timeoutMs": 300}),
        ({"main.py": HELLO, "build.sh": "echo built > built"}, {}),
        ({"main.py": HELLO, "build.sh": "exit 3"}, {}),
    ]
    sent += [client.submit(functions.request(program, **fields)) for program, fields in programs]
    sent.append(client.submit({**functions.request(HELLO), "s3Key": "not-there.zip"}))
    cancelled = client.submit(functions.request(SLEEP, timeoutMs=60_000))
    data_dir = grid.settings.data_dir  # a child that is killed before it has a container has started none
    wait_until(lambda: (cancelled, "leased") in states(data_dir), "it has a container", WAIT_S)
    client.cancel(cancelled)
    outcomes = Counter(client.wait(request_id, WAIT_S).outcome for request_id in [*sent, cancelled])
    client.submit({**functions.request(HELLO), "requestId": sent[0]})  # it ran before
    sqs = sqs_client(grid.settings)
    where = queues.addresses("python", grid.settings, sqs)
    assert where.dead_letter_url is not None
    sqs.send_message(QueueUrl=where.dead_letter_url, MessageBody="no request of anybody")
    sqs.close()
    wait_until(
        lambda: (
            prometheus.value("sum(nanogrid_requests_ended_total)") == sum(outcomes.values())
            and prometheus.value('sum(nanogrid_duplicates_total{end="answered"})') == 1
            and prometheus.value('nanogrid_queue_messages{queue="python", state="dead_letters"}') == 1
            and prometheus.value('nanogrid_cache_bytes{cache="code"}') > 0
        ),
        "Prometheus has seen all of it",
    )
    return outcomes


def states(data_dir: Path) -> list[tuple[str | None, str]]:
    """Request and state of every container."""
    return [(shown.request_id, shown.state) for shown in snapshot(data_dir)]


def queries() -> list[tuple[str, str]]:
    """Panel and expression of every query of the dashboard, as Grafana would send it."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", RANGE).replace("$instance", ".*")
            found.append((panel["title"], expression))
    return found


def test_what_ended_is_counted_by_outcome(load: Counter[Outcome], prometheus: Prometheus) -> None:
    """Each request is counted once, under its outcome; every outcome that a load can have occurs."""
    assert set(load) == set(Outcome), load
    seen = {
        sample["metric"]["outcome"]: float(sample["value"][1])
        for sample in prometheus.query("sum by (outcome) (nanogrid_requests_ended_total)")
    }
    assert seen == {outcome.value: load[outcome] for outcome in Outcome}


def test_what_happened_on_the_way_is_counted(load: Counter[Outcome], prometheus: Prometheus) -> None:
    """Starts, builds, caches, S3, memory and durations are observed, in base units."""
    value = prometheus.value
    assert value("sum(nanogrid_starts_total)") >= sum(load.values()) - load[Outcome.NOT_RUN]
    assert value('nanogrid_starts_total{kind="warm"}') >= 5
    assert value("nanogrid_pool_refills_total") >= 1
    assert value('nanogrid_layer_build_seconds_count{result="built"}') == 1
    assert value('nanogrid_layer_build_seconds_count{result="failed"}') == 1
    assert value('nanogrid_cache_lookups_total{cache="code", result="hit"}') >= 10
    assert value('nanogrid_cache_lookups_total{cache="code", result="miss"}') >= 7
    assert 1_000 < value("nanogrid_s3_downloaded_bytes_total") < 100_000
    assert value('nanogrid_cache_bytes{cache="code"}') > 0
    assert value("nanogrid_runs_killed_for_memory_total") >= load[Outcome.OUT_OF_MEMORY]
    assert value("sum(nanogrid_request_memory_limit_bytes_sum)") > 12 * 512 * 2**20
    assert 0.001 < value('sum(nanogrid_request_phase_seconds_sum{phase="run"})') < WAIT_S * 10
    assert value('nanogrid_run_memory_byte_seconds_total{of="peak"}') > 0
    assert value('nanogrid_queue_messages_received_total{queue="python"}') >= sum(load.values()) - 1
    assert value("nanogrid_run_cpu_seconds_total") > 0
    assert value("nanogrid_events_lost_total + nanogrid_collect_failures_total") == 0


def test_every_query_of_the_dashboard_returns_data(load: Counter[Outcome], prometheus: Prometheus) -> None:
    """No panel is empty after such a load."""
    assert len(queries()) > 50
    assert [(title, expression) for title, expression in queries() if not prometheus.query(expression)] == []


def test_every_series_that_an_alert_reads_is_there(load: Counter[Outcome], prometheus: Prometheus) -> None:
    """No alert is silent because of a misspelt name or label."""
    alerts = prometheus.alerts()
    assert len(alerts) >= 15
    for name, expression in alerts.items():
        selectors = SELECTOR.findall(expression)
        assert selectors, name
        for metric, labels in selectors:
            assert prometheus.query(metric + labels), (name, metric + labels)


def test_alerts_say_what_is_wrong_and_nothing_else(load: Counter[Outcome], prometheus: Prometheus) -> None:
    """After such a load on a healthy worker, only the alert expression for the dead letter is true."""
    alerts = prometheus.alerts()
    del alerts["NanoGridDiskFull"]  # how full this machine's disk is depends on the machine

    def true_now() -> set[str]:
        return {name for name, expression in alerts.items() if prometheus.query(expression)}

    wait_until(lambda: true_now() == {"NanoGridDeadLetters"}, "only one is true")


def test_the_rules_are_right() -> None:
    """promtool: each alert fires when it must, and none does for a busy, healthy worker."""
    promtool = shutil.which("promtool")
    assert promtool, "promtool is not installed: run scripts/setup --tests"
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=SHIPPED, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_to_say_about_the_metrics(load: Counter[Outcome], port: Port) -> None:
    """Names, units and help texts follow Prometheus' own linter."""
    _, body = port.get("/metrics")
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_no_function_and_no_request_is_named(load: Counter[Outcome], port: Port) -> None:
    """Labels have known values only, so that their number does not grow with the load."""
    _, body = port.get("/metrics")
    names = set(re.findall(r"[{,]([a-z_]+)=", body))
    assert names == {
        "cache", "cause", "check", "decision", "end", "kind", "le", "of", "outcome", "phase", "python", "queue", "reason",
        "result", "runtime", "state", "version",
    }  # fmt: skip
    assert len(body.splitlines()) < 2_000


def test_every_metric_is_in_the_handbook(load: Counter[Outcome], port: Port) -> None:
    """docs/operations.md lists exactly the metrics that a worker exports."""
    _, body = port.get("/metrics")
    shown = set(re.findall(r"^# HELP (nanogrid_\w+) ", body, re.MULTILINE))
    handbook = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"^\| `(nanogrid_\w+)`", handbook, re.MULTILINE)) == shown


def test_a_healthy_worker_says_so(load: Counter[Outcome], port: Port) -> None:
    """Each part answers, and the worker is ready."""
    wait_until(lambda: port.get("/healthz")[0] == 200, "each check is made in time, also on a busy machine")
    assert set(port.json("/healthz")[1]["checks"]) == {"docker", "redis", "sqs", "disk"}
    assert port.json("/readyz") == (200, {"ready": True, "reason": None})
    assert port.get("/nothing")[0] == 404


def test_the_status_tells_what_is_in_force(load: Counter[Outcome], port: Port, grid: Grid) -> None:
    """Version, queues, pool, tuner and limits in one object."""
    status, told = port.json("/status")
    assert status == 200
    assert told["worker"]["ready"] is True
    assert set(told["queues"]) == {"python", "cpp"}
    assert told["queues"]["python"]["deadLetters"] == 1
    assert told["pool"]["mayHave"]["containers"] == grid.settings.pool_containers
    assert sum(told["pool"]["containers"].values()) >= 2
    assert told["tuner"]["mode"] == grid.settings.tuner_mode.value
    assert told["limits"]["max_memory_mb"] == grid.settings.max_memory_mb


def test_a_worker_that_was_told_to_read_nothing_is_not_ready(
    load: Counter[Outcome], port: Port, grid: Grid, worker: Worker
) -> None:
    """And ready again when it reads."""
    control = grid.app.control
    for queue in ("python", "cpp"):
        control.cancel_consumer(queue, destination=[worker.name])
    reason = {"ready": False, "reason": "the worker is not assigned any queue"}
    wait_until(lambda: port.json("/readyz") == (503, reason), "it is not ready")
    for queue in ("python", "cpp"):
        control.add_consumer(queue, destination=[worker.name])
    wait_until(lambda: port.get("/readyz")[0] == 200, "it is ready again")


def test_children_do_not_keep_the_port(load: Counter[Outcome], port: Port, worker: Worker) -> None:
    """Only the main process listens: a worker that ends releases its port."""
    listening = f":{int(port.url.rpartition(':')[2]):04X} 00000000:0000 0A"
    inode = next(line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if listening in line)
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    assert children
    assert holds(worker.process.pid, inode)
    assert [pid for pid in children if holds(int(pid), inode)] == []


def holds(pid: int, inode: str) -> bool:
    """Whether a process has this socket open."""
    return any(
        str(entry.readlink()) == f"socket:[{inode}]"
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if entry.is_symlink()
    )


def test_a_second_worker_whose_port_is_taken_works_all_the_same(
    load: Counter[Outcome], port: Port, grid: Grid, functions: Functions
) -> None:
    """It logs one line and runs without the port; a draining worker reports that on its port, if it has one."""
    taken = port.url.removeprefix("http://")
    settings = grid.settings.model_copy(update={"metrics_address": taken})
    second = Grid(settings, grid.folder)
    try:
        with second.worker("second@test", app="nanogrid") as running_worker:
            assert running_worker.log.read_text().count("this worker has no /metrics") == 1
    finally:
        second.close()


def test_a_worker_that_drains_is_alive_and_not_ready(
    load: Counter[Outcome], port: Port, grid: Grid, functions: Functions, worker: Worker
) -> None:
    """From SIGTERM on, /readyz reports it, while the running function continues. The last test: it stops the worker."""
    client = Client(grid.settings)
    request_id = client.submit(functions.request(SLEEP, payload=2, timeoutMs=60_000))
    wait_until(lambda: client.state(request_id) == "STARTED", "it runs", WAIT_S)
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: port.json("/readyz") == (503, {"ready": False, "reason": "the worker is draining"}), "it drains")
    assert port.get("/metrics")[0] == 200
    assert client.wait(request_id, WAIT_S).outcome is Outcome.SUCCEEDED
    assert worker.process.wait(60) == 0
