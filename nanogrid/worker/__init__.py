"""What NanoGrid adds to Celery's worker. Imported by `celery -A nanogrid worker` alone.

The rule: the main process owns containers and counts events; the children, forked from it, only request and emit.

    state               what the steps of one worker share
    telemetry_step      receives events from children
    owner_step          owns the containers
    metrics_step        serves metrics and health over HTTP
    stall_step          detects a stalled worker and repairs it (stall)
    controller          hands requests to children
    preparation_step    checks queues, pulls images, answers dead letters
    children            what a child does first and last
    sharing_step        prepares what children share, before they are forked
    prefork_step        refuses every pool of Celery's but prefork
    private_parts_step  refuses versions of kombu and Celery without the private parts that NanoGrid uses
"""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import signals
from celery.worker import components

from nanogrid.celery import app
from nanogrid.worker import children
from nanogrid.worker.metrics_step import MetricsStep
from nanogrid.worker.owner_step import OwnerStep
from nanogrid.worker.prefork_step import PreforkStep
from nanogrid.worker.preparation_step import PreparationStep
from nanogrid.worker.private_parts_step import PrivatePartsStep
from nanogrid.worker.sharing_step import SharingStep
from nanogrid.worker.stall_step import StallStep
from nanogrid.worker.telemetry_step import TelemetryStep

__all__ = [
    "MetricsStep",
    "OwnerStep",
    "PreforkStep",
    "PreparationStep",
    "PrivatePartsStep",
    "SharingStep",
    "StallStep",
    "TelemetryStep",
    "children",
]


@signals.celeryd_init.connect
def _worker_starts(instance: Any, **_: Any) -> None:
    app.log.only_json(instance)
    children.connect(main_pid=os.getpid())


logging.getLogger("botocore").setLevel(logging.WARNING)  # at INFO each client logs where it found its credentials

app.steps["worker"] |= {
    MetricsStep,
    OwnerStep,
    PreforkStep,
    PreparationStep,
    PrivatePartsStep,
    SharingStep,
    StallStep,
    TelemetryStep,
}
# Celery orders steps by what they require: the process pool starts after the owner and the HTTP port, and stops before them.
components.Pool.requires = (*components.Pool.requires, OwnerStep, MetricsStep, SharingStep)
