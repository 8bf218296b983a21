"""The metrics of a worker with their labels, and the files for Prometheus and Grafana that are shipped with them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from nanogrid.execution.container.hardening import Confinement
from nanogrid.execution.pool.owner.policy import Bounds, ContainerKind, Demand
from nanogrid.execution.pool.owner.pool_counters import Eviction, PoolCounter, PoolCounters
from nanogrid.execution.pool.owner.stock import Stock
from nanogrid.execution.pool.states import State
from nanogrid.metrics.address import Address
from nanogrid.metrics.event_metrics import KEPT, LOWERED, MOST_VALUES, OTHER, EventMetrics
from nanogrid.metrics.gauges import Gauges, build_info, of_pool
from nanogrid.metrics.queue_depths import QueueObservation, oldest_age_s
from nanogrid.result import Outcome
from nanogrid.settings import Settings
from nanogrid.sqs.queues import QueueDepth
from nanogrid.telemetry import counters
from nanogrid.telemetry.events import LOST, CountEvent, RequestEvent, RunEvent

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "deploy" / "observability"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DASHBOARD = json.loads((SHIPPED / "nanogrid-dashboard.json").read_text())
MIB = 2**20


@pytest.fixture
def registry() -> CollectorRegistry:
    """The registry of one worker."""
    return CollectorRegistry()


@pytest.fixture
def event_metrics(registry: CollectorRegistry) -> EventMetrics:
    """The event metrics, with the built-in runtimes."""
    return EventMetrics(registry, Settings())


def ended(runtime: str | None = "python", outcome: str = "SUCCEEDED", **fields: Any) -> RequestEvent:
    """Return the end of a request."""
    return RequestEvent("a-function", runtime, outcome, **fields)


def of(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """Return a metric's value, or None if it does not exist."""
    return registry.get_sample_value(f"nanogrid_{name}", labels)


# -- metrics of events


def test_what_has_not_happened_stands_at_zero(registry: CollectorRegistry, event_metrics: EventMetrics) -> None:
    """Prometheus sees the first event as an increase from zero, for every runtime and outcome."""
    for runtime in ("python", "cpp", OTHER):
        for outcome in Outcome:
            assert of(registry, "requests_ended_total", runtime=runtime, outcome=outcome.value) == 0
    for cause in counters.CAUSES:
        assert of(registry, "attempts_failed_total", cause=cause) == 0
    assert of(registry, "events_lost_total") == 0


def test_an_end_is_counted_with_its_phases_in_seconds_and_memory_in_bytes(
    registry: CollectorRegistry, event_metrics: EventMetrics
) -> None:
    """Milliseconds and MiB of the events become base units; a phase that did not happen is not observed."""
    event_metrics([ended(phases={"run": 1500.0, "fetch": None}, peak_bytes=3 * MIB, limit_mb=128)])
    assert of(registry, "requests_ended_total", runtime="python", outcome="SUCCEEDED") == 1
    assert of(registry, "request_phase_seconds_sum", phase="run", runtime="python") == 1.5
    assert of(registry, "request_phase_seconds_bucket", phase="run", runtime="python", le="1.0") == 0
    assert of(registry, "request_phase_seconds_bucket", phase="run", runtime="python", le="2.0") == 1
    assert of(registry, "request_phase_seconds_count", phase="fetch", runtime="python") == 0
    assert of(registry, "request_memory_peak_bytes_sum", runtime="python") == 3 * MIB
    assert of(registry, "request_memory_limit_bytes_sum", runtime="python") == 128 * MIB


@pytest.mark.parametrize("runtime", ["haskell", None, "", "x" * 1000])
def test_a_runtime_that_nobody_knows_is_other(
    registry: CollectorRegistry, event_metrics: EventMetrics, runtime: str | None
) -> None:
    """A name that a sender chose never becomes a label."""
    before = {sample.name for metric in registry.collect() for sample in metric.samples}
    event_metrics([ended(runtime, "NOT_RUN", phases={"run": 1.0}, limit_mb=1)])
    assert of(registry, "requests_ended_total", runtime=OTHER, outcome="NOT_RUN") == 1
    assert {sample.name for metric in registry.collect() for sample in metric.samples} == before


def test_an_alias_counts_as_its_runtime(registry: CollectorRegistry, event_metrics: EventMetrics) -> None:
    """A refused request carries the name that its sender used."""
    aliases = [(alias, name) for name, runtime in Settings().runtime_table.items() for alias in runtime.aliases]
    assert aliases
    event_metrics([ended(alias) for alias, _ in aliases])
    counted_ones = sum(
        of(registry, "requests_ended_total", runtime=name, outcome="SUCCEEDED") or 0
        for name in {name for _, name in aliases}
    )
    assert counted_ones == len(aliases)


def test_what_a_run_used_is_told_beside_what_it_was_given(
    registry: CollectorRegistry, event_metrics: EventMetrics
) -> None:
    """Memory times duration, as requested, limited and used; a run without a peak counts in none of them."""
    event_metrics(
        [
            RunEvent("f", "abc", 1.0, "SUCCEEDED", 2000.0, 500.0, 10 * MIB, 64, 256, killed_for_memory=True),
            RunEvent("f", "abc", 1.0, "SUCCEEDED", 2000.0, None, None, 64, 256, killed_for_memory=False),
        ]
    )
    found = {name: of(registry, "run_memory_byte_seconds_total", of=name) for name in ("requested", "limit", "peak")}
    assert found == {"requested": 512 * MIB, "limit": 128 * MIB, "peak": 20 * MIB}
    assert of(registry, "run_cpu_seconds_total") == 0.5
    assert of(registry, "runs_killed_for_memory_total") == 1


def test_the_tuner_is_seen_by_the_limits_of_runs(registry: CollectorRegistry, event_metrics: EventMetrics) -> None:
    """Lowered or kept; a re-run after a limit that was too small is not a decision."""

    def run(limit_mb: int, *, rerun: bool = False) -> RunEvent:
        return RunEvent("f", "abc", 1.0, "SUCCEEDED", 1.0, None, None, limit_mb, 256, False, rerun)

    event_metrics([run(64), run(64), run(256), run(256, rerun=True), CountEvent(counters.RERUN)])
    assert of(registry, "tuner_decisions_total", decision=LOWERED) == 2
    assert of(registry, "tuner_decisions_total", decision=KEPT) == 1
    assert of(registry, "tuner_reruns_total") == 1


def test_everything_that_can_be_told_by_name_is_counted(
    registry: CollectorRegistry, event_metrics: EventMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    """Each name in `counters` has a metric, and so has the number of lost events."""
    labels = {
        counters.CODE_LOOKUP: counters.HIT, counters.LAYER_LOOKUP: counters.MISS, counters.LAYER_BUILD: counters.BUILT,
        counters.ATTEMPT_FAILED: "pool", counters.DUPLICATE: counters.WAITED,
    }  # fmt: skip
    names = [
        node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else node.targets[0].id
        for node in ast.parse(Path(counters.__file__).read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    values = {counters.HIT, counters.MISS, counters.BUILT, counters.FAILED, counters.ANSWERED, counters.WAITED}
    told = [value for name in names if isinstance(value := getattr(counters, name), str) and value not in values]
    assert len(told) >= 10
    before = total(registry)
    for name in [*told, LOST]:
        event_metrics([CountEvent(name, labels.get(name, ""), 2)])
        assert total(registry) > before, name
        before = total(registry)
    assert caplog.text == ""


def total(registry: CollectorRegistry) -> float:
    """Return the sum of all samples."""
    return sum(sample.value for metric in registry.collect() for sample in metric.samples)


def test_a_name_without_a_metric_is_said_once_in_the_log(
    event_metrics: EventMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a bug of ours, which must cost neither other events nor log space."""
    event_metrics([CountEvent("nonsense"), CountEvent("nonsense"), CountEvent("nonsense")])
    assert caplog.text.count("events named 'nonsense' are not counted") == 1


def test_values_of_a_label_are_bounded(registry: CollectorRegistry, event_metrics: EventMetrics) -> None:
    """Whatever causes arrive, their number is limited, and the rest share one series."""
    event_metrics([CountEvent(counters.ATTEMPT_FAILED, f"value-{number}") for number in range(100)])
    event_metrics([CountEvent(counters.ATTEMPT_FAILED, "pool")])
    (metric,) = [metric for metric in registry.collect() if metric.name == "nanogrid_attempts_failed"]
    assert len(metric.samples) == len(counters.CAUSES) + MOST_VALUES + 1
    assert of(registry, "attempts_failed_total", cause=OTHER) == 100 - MOST_VALUES
    assert of(registry, "attempts_failed_total", cause="pool") == 1


# -- gauges


def test_a_part_that_fails_costs_only_its_own_numbers(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are exported, and the failure is counted and logged."""

    def broken() -> Iterable[Metric]:
        yield GaugeMetricFamily("nanogrid_half", "Not the whole part.", value=1.0)
        raise RuntimeError("this part is broken")

    Gauges(registry, [broken, build_info])
    for scrape in (1, 2):
        seen = {metric.name: metric.samples[0].value for metric in registry.collect()}
        assert seen == {"nanogrid_build_info": 1, "nanogrid_collect_failures": scrape}
    assert "this part is broken" in caplog.text


def test_the_pool_is_shown_by_state(registry: CollectorRegistry) -> None:
    """Every state has a series; evictions are counted when they happen."""
    stock = Stock(Bounds(2, 1000), lambda _: None, lambda _: None)
    Gauges(registry, [of_pool(stock)])
    limits = Confinement(300, 1.0, "none")
    kind = ContainerKind("image", "none")
    first = stock.acquire(Demand(kind, "a", "a", 300), image="i", limits=limits, request_id="1", wait_s=0).pooled
    stock.move(first, State.LEASED)
    assert of(registry, "pool_containers", state="leased") == 1
    assert of(registry, "pool_containers", state="idle") == 0
    assert of(registry, "pool_memory_bytes") == 300 * MIB
    for state in (State.CLEANING, State.IDLE):
        stock.move(first, state)
    for name in ("b", "c"):
        stock.acquire(Demand(kind, name, name, 300), image="i", limits=limits, request_id=name, wait_s=0)
    assert of(registry, "pool_evictions_total", reason="room") == 1
    assert of(registry, "pool_containers", state="ending") == 1
    assert of(registry, "pool_waits_total", end="given_up") == 0


def test_a_request_that_waits_in_vain_is_counted(registry: CollectorRegistry) -> None:
    """It counts as given up."""
    stock = Stock(Bounds(1, 1000), lambda _: None, lambda _: None)
    Gauges(registry, [of_pool(stock)])
    demand, limits = Demand(ContainerKind("image", "none"), "a", "a", 300), Confinement(300, 1.0, "none")
    stock.acquire(demand, image="i", limits=limits, request_id="1", wait_s=0)
    with pytest.raises(Exception, match="no container came free"):
        stock.acquire(demand, image="i", limits=limits, request_id="2", wait_s=0)
    assert of(registry, "pool_waits_total", end="given_up") == 1
    assert of(registry, "pool_waiters") == 0


def test_the_pools_counters_add_up() -> None:
    """Each counter has a count for each label."""
    counters = PoolCounters()
    counters.add(PoolCounter.EVICTIONS, Eviction.IDLE.value, 3)
    counters.add(PoolCounter.EVICTIONS, Eviction.IDLE.value)
    counters.add(PoolCounter.REFILLS)
    assert [
        counters.of(PoolCounter.EVICTIONS, "idle"),
        counters.of(PoolCounter.EVICTIONS, "room"),
        counters.of(PoolCounter.REFILLS),
    ] == [
        4,
        0,
        1,
    ]


# -- the age of the oldest message


def depth(visible: int) -> QueueDepth:
    """A queue with this many waiting messages."""
    return QueueDepth("python", visible, 0, 0, 0)


@pytest.mark.parametrize(
    ("visible", "empty_at", "newest_received_at", "age_s"),
    [
        (0, None, None, 0.0),  # none waits
        (0, 10.0, 20.0, 0.0),
        (5, None, None, 50.0),  # nothing known: at least since the first check, at 50
        (5, None, 70.0, 30.0),  # the waiting message was sent after the received one
        (5, 90.0, 20.0, 10.0),  # and after the queue was empty: an old message long ago raises no alarm
        (5, 60.0, 95.0, 5.0),
        (5, None, 120.0, 0.0),  # SQS' clock is ahead of ours
    ],
)
def test_the_age_of_the_oldest_message(
    visible: int, empty_at: float | None, newest_received_at: float | None, age_s: float
) -> None:
    """At time 100, after a first check at 50."""
    seen = QueueObservation(50.0, 100.0, depth(visible), empty_at=empty_at)
    assert oldest_age_s(seen, newest_received_at, 100.0) == age_s


def test_a_queue_is_empty_only_when_two_looks_say_so() -> None:
    """SQS' counts are approximate: a single zero proves nothing."""
    seen = QueueObservation(0.0, 0.0, depth(3))
    for at, visible in enumerate([0, 4, 0, 0, 2]):
        seen.update(depth(visible), float(at))
    assert (seen.empty_at, seen.at, seen.depth.visible) == (3.0, 4.0, 2)


# -- addresses


@pytest.mark.parametrize(
    ("text", "host", "port", "url"),
    [
        ("127.0.0.1:9747", "127.0.0.1", 9747, "http://127.0.0.1:9747"),
        ("[::1]:0", "::1", 0, "http://[::1]:0"),
        ("0.0.0.0:80", "0.0.0.0", 80, "http://127.0.0.1:80"),
        ("worker.internal:9747", "worker.internal", 9747, "http://worker.internal:9747"),
    ],
)
def test_an_address_is_read_and_written(text: str, host: str, port: int, url: str) -> None:
    """Host and port, and the URL for the same host."""
    address = Address.of(Settings(metrics_address=text).metrics_address)
    assert (address.host, address.port, str(address), address.url) == (host, port, text, url)


@pytest.mark.parametrize("text", ["9747", "localhost", "127.0.0.1:65536", "::1:80", "host:-1", "a b:1", "off:"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    """At start, with the accepted form."""
    with pytest.raises(ValueError, match="host:port"):
        Settings(metrics_address=text)


# -- shipped files


def panels() -> Iterator[dict[str, Any]]:
    """The panels of the dashboard, without rows."""
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def test_the_dashboard_has_no_panel_that_leaves_a_question() -> None:
    """Ids are unique; each panel has a description, a unit, a query and a legend."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    """Each has its own position on the grid of 24 columns."""
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]


def test_the_handbook_says_what_to_do_for_every_alert() -> None:
    """docs/operations.md has one table row per alert, in the order of the rules, with the runbook's sentence."""
    rules = re.findall(r'- alert: (\w+)\n.*?runbook: "(.+?)"\n', (SHIPPED / "alerts.yml").read_text(), re.DOTALL)
    assert len(rules) >= 15
    rows = re.findall(r"^\| `(NanoGrid\w+)` \| .+? \| (.+) \|$", OPERATIONS, re.MULTILINE)
    assert [(name, plain(text)) for name, text in rows] == [(name, plain(text)) for name, text in rules]


def plain(text: str) -> str:
    """Return a sentence without code marks."""
    return text.replace("`", "")


def test_the_handbook_lists_every_metric(registry: CollectorRegistry, event_metrics: EventMetrics) -> None:
    """docs/operations.md has one table row per metric, including each that the dashboard and the alerts use."""
    documented = set(re.findall(r"^\| `(nanogrid_\w+)`", OPERATIONS, re.MULTILINE))
    families = {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in registry.collect()}
    text = (SHIPPED / "alerts.yml").read_text() + json.dumps(DASHBOARD)
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bnanogrid_[a-z0-9_]+\b", text)}
    assert (families | used) - documented == set()
