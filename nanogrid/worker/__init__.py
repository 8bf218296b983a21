"""What a worker has beside Celery's own parts. Imported by `celery -A nanogrid worker` alone.

The rule: the main process owns and keeps account; the children, forked from it, only ask and tell.

    containers   owns the containers          accounts   takes what the children tell
    metrics      shows it, and its own health, over HTTP
    stalls       sees when children take nothing, and mends it (stall)
    controller   hands requests to children
    preparation  checks queues, fetches images, answers for dead letters
    children     what a child does first, and last
    pools        refuses every pool of Celery's but prefork
    parts        refuses versions of kombu and Celery without the private parts that NanoGrid uses
"""

from __future__ import annotations

import logging
from typing import Any

from celery import signals
from celery.worker import components

from nanogrid.celery import app
from nanogrid.worker import children
from nanogrid.worker.metrics_step import Metrics
from nanogrid.worker.owner_step import Containers
from nanogrid.worker.prefork_step import PreforkOnly
from nanogrid.worker.preparation_step import Preparation
from nanogrid.worker.private_parts_step import PrivatePartsExist
from nanogrid.worker.stall_step import Stalls
from nanogrid.worker.telemetry_step import Accounts

__all__ = ["Accounts", "Containers", "Metrics", "PreforkOnly", "Preparation", "PrivatePartsExist", "Stalls", "children"]


@signals.celeryd_init.connect
def _begins(instance: Any, **_: Any) -> None:
    app.log.only_json(instance)


logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells at INFO, for each client, where it found credentials

app.steps["worker"] |= {Accounts, Containers, Metrics, PreforkOnly, Preparation, PrivatePartsExist, Stalls}
# Celery orders steps by what they require: the process pool comes after the owner and the HTTP port, and goes before them.
components.Pool.requires = (*components.Pool.requires, Containers, Metrics)
