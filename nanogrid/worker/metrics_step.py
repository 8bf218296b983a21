"""The bootstep that serves a worker's state over HTTP: `/metrics`, `/healthz`, `/readyz`, `/status`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps, signals
from celery.utils.log import get_logger
from celery.worker import components, state
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, ProcessCollector, generate_latest

from nanogrid.celery import NanoGrid
from nanogrid.connections import forks
from nanogrid.execution.code import CodeStore
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.layers import LayerStore
from nanogrid.metrics import gauges, status
from nanogrid.metrics.address import Address, publish
from nanogrid.metrics.background import BackgroundChecks
from nanogrid.metrics.health import DEADLINE_S, Disk, Health, check_engine, check_redis
from nanogrid.metrics.queue_depths import QueueDepths
from nanogrid.metrics.server import MetricsServer, Page
from nanogrid.settings import OFF, Settings
from nanogrid.sqs.transport.poll_status import poll_statuses
from nanogrid.worker.owner_step import OwnerStep
from nanogrid.worker.state import WorkerState
from nanogrid.worker.telemetry_step import TelemetryStep

log = get_logger(__name__)

JSON = "application/json; charset=utf-8"
STALE_CHECKS = 3
"""Queue depths are shown until this many checks in a row have failed."""


class MetricsStep(bootsteps.StartStopStep):
    """Serves before the children are forked and until they have ended, so that a starting or draining worker reports it."""

    requires = (components.Hub, TelemetryStep, OwnerStep)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        self._app: NanoGrid = worker.app
        self._settings: Settings = worker.app.settings
        self._state: WorkerState = worker.nanogrid
        self._server: MetricsServer | None = None
        self._began_at = time.time()
        self._phase = "starting"

    def start(self, worker: Any) -> None:
        """Bind the port and start the checks. If the port cannot be bound, the worker runs without it."""
        if self._settings.metrics_address in ("", OFF):
            return
        server = self._bound()
        if server is None:
            return
        self._depths = QueueDepths(self._settings, lambda: list(self._app.amqp.queues.consume_from))
        self._depths.connect()
        self._engine = Engine(self._settings)
        self._disk = Disk(self._settings)
        self._health = Health(
            {
                "docker": check_engine(self._engine),
                "redis": check_redis(self._settings.result_url),
                "sqs": self._depths.check,
                "disk": self._disk.check,
            }
        )
        caches = {
            "code": CodeStore(self._settings).usage,
            "layers": LayerStore(self._settings, self._engine).usage,
        }
        self._checks = BackgroundChecks(self._health, caches, self._settings.metrics_look_s)
        self._register()
        signals.worker_ready.connect(self._ready, weak=False)
        signals.worker_shutting_down.connect(self._draining, weak=False)
        self._server = server
        forks.close_in_child(server)
        server.start()
        self._checks.start()
        log.info("metrics: http://%s/metrics, /healthz, /readyz, /status", server.address)

    def stop(self, worker: Any) -> None:
        """Stop serving."""
        if self._server is None:
            return
        signals.worker_ready.disconnect(self._ready)
        signals.worker_shutting_down.disconnect(self._draining)
        forks.forget(self._server)
        self._server.stop()
        self._server = None
        self._checks.stop()
        self._engine.close()
        self._depths.close()

    terminate = stop

    def _bound(self) -> MetricsServer | None:
        address = Address.of(self._settings.metrics_address)
        pages: dict[str, Callable[[], Page]] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status": self._status,
        }
        try:
            server = MetricsServer(address, pages)
        except OSError as error:
            log.warning(
                "metrics: this worker has no /metrics and no /healthz, because it cannot listen at %s (%s): set "
                "NANOGRID_METRICS_ADDRESS to a different port for each worker of a host (port 0: any free port)",
                address, error.strerror or error,
            )  # fmt: skip
            return None
        assert self._state.owner is not None
        try:
            publish(server.address, self._state.owner.folder)
        except OSError as error:
            log.warning("metrics: nanogrid doctor will not find %s: %s", server.address, error)
        return server

    def _register(self) -> None:
        assert self._state.owner is not None
        ProcessCollector(registry=self._state.registry)
        stale_after_s = STALE_CHECKS * (self._settings.metrics_look_s + DEADLINE_S)
        parts: list[gauges.Part] = [
            gauges.build_info,
            gauges.of_worker(lambda: self._unready() is None, self._children, lambda: len(state.active_requests)),
            gauges.of_stalls(lambda: self._stalled() is not None, lambda: self._state.mends),
            gauges.of_pool(self._state.owner.stock),
            gauges.of_queues(self._depths, stale_after_s),
            gauges.of_caches(self._checks.usages),
            gauges.of_health(self._health, self._disk),
        ]
        gauges.Gauges(self._state.registry, parts)

    def _children(self) -> int:
        """Return how many children the pool should have now. Remote control may have changed it."""
        return int(getattr(self._worker.pool, "num_processes", self._worker.concurrency))

    # -- readiness

    def _ready(self, **_: Any) -> None:
        if self._phase == "starting":
            self._phase = "ready"

    def _draining(self, **_: Any) -> None:
        self._phase = "draining"

    def _unready(self) -> str | None:
        """Return why this worker accepts no messages now, or None."""
        if self._phase != "ready":
            return f"the worker is {self._phase}"
        read = dict(poll_statuses())
        names = list(self._app.amqp.queues.consume_from)
        if not names:
            return "the worker is not assigned any queue"
        if not any(name in read and not read[name].failing for name in names):
            return f"no queue answers: {', '.join(names)}"
        return self._stalled()

    def _stalled(self) -> str | None:
        stalls = self._state.stalls
        return None if stalls is None else stalls.problem(time.monotonic())

    # -- pages

    def _metrics(self) -> Page:
        return Page(generate_latest(self._state.registry), CONTENT_TYPE_PLAIN_0_0_4)

    def _healthz(self) -> Page:
        results = self._health.report()
        healthy = all(result.ok for result in results.values())
        checks = {name: result.to_json() for name, result in results.items()}
        return _json({"healthy": healthy, "checks": checks}, ok=healthy)

    def _readyz(self) -> Page:
        reason = self._unready()
        return _json({"ready": reason is None, "reason": reason}, ok=reason is None)

    def _status(self) -> Page:
        owner = self._state.owner
        return _json(
            {
                "version": gauges.VERSION,
                "worker": {
                    "name": self._worker.hostname,
                    "pid": os.getpid(),
                    "owner": None if owner is None else owner.id,
                    "upS": round(time.time() - self._began_at, 1),
                    "children": self._children(),
                    "active": len(state.active_requests),
                    "ready": self._unready() is None,
                    "reason": self._unready(),
                    "stalled": self._stalled() is not None,
                },
                "queues": status.queues(self._depths),
                "pool": None if owner is None else status.pool(owner.stock),
                "caches": {name: vars(usage) for name, usage in dict(self._checks.usages).items()},
                "tuner": status.tuner(self._state.registry, self._settings),
                "health": {name: result.to_json() for name, result in self._health.last_results().items()},
                "limits": status.limits(self._settings),
            }
        )


def _json(content: dict[str, Any], *, ok: bool = True) -> Page:
    return Page(json.dumps(content, indent=2).encode() + b"\n", JSON, 200 if ok else 503)
