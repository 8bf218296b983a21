"""What a child of a worker does first, and last."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from typing import Any

from celery import signals

from nanogrid.celery import app
from nanogrid.telemetry import tracing
from nanogrid.worker.metrics_step import MetricsStep
from nanogrid.worker.owner_step import OwnerStep
from nanogrid.worker.telemetry_step import TelemetryStep

PR_SET_PDEATHSIG = 1


@signals.worker_process_init.connect
def _child_started(**_: Any) -> None:
    """A child keeps nothing of the owner's, and ends with its parent: what it runs could not be answered for any more."""
    if OwnerStep.owner is not None:
        OwnerStep.owner.leave_to_parent()
    if TelemetryStep.ledger is not None:
        TelemetryStep.ledger.leave_to_parent()
    tracing.begin(app.settings)
    if MetricsStep.server is not None:
        MetricsStep.server.leave_to_parent()
    gc.freeze()  # what a worker has loaded stays: no collection need look at it during a run
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have gone before. It is not told by pid 1: in a container that is the main process itself.
    if OwnerStep.main_pid not in (os.getpid(), os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


@signals.worker_process_shutdown.connect
def _child_ends(**_: Any) -> None:
    """What was traced and not sent yet leaves now: a forked process has no farewell of Python's own."""
    tracing.end()
