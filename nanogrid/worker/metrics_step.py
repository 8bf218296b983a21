"""The bootstep that shows a worker over HTTP: `/metrics`, `/healthz`, `/readyz`, `/status`."""

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
from nanogrid.execution.code import CodeStore
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.layers import LayerStore
from nanogrid.metrics import gauges, status
from nanogrid.metrics.address import Address, publish
from nanogrid.metrics.health import DEADLINE_S, Disk, Health, engine_look, redis_look
from nanogrid.metrics.queue_depths import QueueLook
from nanogrid.metrics.server import Page, Server
from nanogrid.metrics.watcher import Watch
from nanogrid.settings import OFF, Settings
from nanogrid.sqs.transport.poll_status import poll_statuses
from nanogrid.worker.owner_step import Containers
from nanogrid.worker.stall_step import Stalls
from nanogrid.worker.telemetry_step import Accounts

log = get_logger(__name__)

JSON = "application/json; charset=utf-8"
STALE_LOOKS = 3
"""Depths are shown for as long as so many looks take, if these fail."""


class Metrics(bootsteps.StartStopStep):
    """Listens before the children are there, and until they are gone: a worker that starts or drains says so."""

    requires = (components.Hub, Accounts, Containers)
    server: Server | None = None
    """The server of this process, where it has one; a child finds its parent's."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        self._app: NanoGrid = worker.app
        self._settings: Settings = worker.app.settings
        self._began_at = time.time()
        self._phase = "starting"

    def start(self, worker: Any) -> None:
        """Bind the port, and begin to look. Without a port the worker goes on."""
        if self._settings.metrics_address in ("", OFF):
            return
        server = self._bound()
        if server is None:
            return
        self._look = QueueLook(self._settings, lambda: list(self._app.amqp.queues.consume_from))
        self._look.connect()
        self._engine = Engine(self._settings)
        self._disk = Disk(self._settings)
        self._health = Health(
            {
                "docker": engine_look(self._engine),
                "redis": redis_look(self._settings.result_url),
                "sqs": self._look.look,
                "disk": self._disk.look,
            }
        )
        caches = {
            "code": CodeStore(self._settings).usage,
            "layers": LayerStore(self._settings, self._engine).usage,
        }
        self._watch = Watch(self._health, caches, self._settings.metrics_look_s)
        self._register()
        signals.worker_ready.connect(self._ready, weak=False)
        signals.worker_shutting_down.connect(self._draining, weak=False)
        Metrics.server = server
        server.start()
        self._watch.start()
        log.info("metrics: http://%s/metrics, /healthz, /readyz, /status", server.address)

    def stop(self, worker: Any) -> None:
        """Listen no more."""
        if Metrics.server is None:
            return
        signals.worker_ready.disconnect(self._ready)
        signals.worker_shutting_down.disconnect(self._draining)
        Metrics.server.stop()
        Metrics.server = None
        self._watch.stop()
        self._engine.close()
        self._look.close()

    terminate = stop

    def _bound(self) -> Server | None:
        address = Address.of(self._settings.metrics_address)
        pages: dict[str, Callable[[], Page]] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status": self._status,
        }
        try:
            server = Server(address, pages)
        except OSError as error:
            log.warning(
                "metrics: this worker has no /metrics and no /healthz, as it cannot listen at %s (%s): give each worker of a "
                "host a port of its own by NANOGRID_METRICS_ADDRESS (port 0: any that is free)",
                address, error.strerror or error,
            )  # fmt: skip
            return None
        assert Containers.owner is not None
        try:
            publish(server.address, Containers.owner.folder)
        except OSError as error:
            log.warning("metrics: nanogrid doctor will not find %s: %s", server.address, error)
        return server

    def _register(self) -> None:
        assert Containers.owner is not None
        ProcessCollector(registry=Accounts.registry)
        stale_after_s = STALE_LOOKS * (self._settings.metrics_look_s + DEADLINE_S)
        parts: list[gauges.Part] = [
            gauges.build_info,
            gauges.of_worker(lambda: self._unready() is None, self._children, lambda: len(state.active_requests)),
            gauges.of_stalls(lambda: self._stalled() is not None, lambda: Stalls.mends),
            gauges.of_pool(Containers.owner.stock),
            gauges.of_queues(self._look, stale_after_s),
            gauges.of_caches(self._watch.usages),
            gauges.of_health(self._health, self._disk),
        ]
        gauges.Gauges(Accounts.registry, parts)

    def _children(self) -> int:
        """How many there are to be now: remote control may have changed it."""
        return int(getattr(self._worker.pool, "num_processes", self._worker.concurrency))

    # -- readiness

    def _ready(self, **_: Any) -> None:
        if self._phase == "starting":
            self._phase = "ready"

    def _draining(self, **_: Any) -> None:
        self._phase = "draining"

    def _unready(self) -> str | None:
        """Why this worker takes no messages now, or None."""
        if self._phase != "ready":
            return f"the worker is {self._phase}"
        read = dict(poll_statuses())
        wanted = list(self._app.amqp.queues.consume_from)
        if not wanted:
            return "the worker was told to read no queue"
        if not any(name in read and not read[name].failing for name in wanted):
            return f"no queue answers: {', '.join(wanted)}"
        return self._stalled()

    def _stalled(self) -> str | None:
        return None if Stalls.current is None else Stalls.current.problem()

    # -- pages

    def _metrics(self) -> Page:
        return Page(generate_latest(Accounts.registry), CONTENT_TYPE_PLAIN_0_0_4)

    def _healthz(self) -> Page:
        found = self._health.report()
        healthy = all(one.ok for one in found.values())
        return _json({"healthy": healthy, "checks": {name: one.to_json() for name, one in found.items()}}, ok=healthy)

    def _readyz(self) -> Page:
        reason = self._unready()
        return _json({"ready": reason is None, "reason": reason}, ok=reason is None)

    def _status(self) -> Page:
        owner = Containers.owner
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
                "queues": status.queues(self._look),
                "pool": None if owner is None else status.pool(owner.stock),
                "caches": {name: vars(usage) for name, usage in dict(self._watch.usages).items()},
                "tuner": status.tuner(Accounts.registry, self._settings),
                "health": {name: one.to_json() for name, one in self._health.known().items()},
                "limits": status.limits(self._settings),
            }
        )


def _json(content: dict[str, Any], *, ok: bool = True) -> Page:
    return Page(json.dumps(content, indent=2).encode() + b"\n", JSON, 200 if ok else 503)
