"""What a child of a worker does first and last."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from functools import partial
from typing import Any

from celery import signals

from nanogrid.celery import app
from nanogrid.telemetry import tracing

PR_SET_PDEATHSIG = 1


def connect(main_pid: int) -> None:
    """Connect the handlers of the children that this worker forks. `nanogrid.connections.forks` closes the parent's parts."""
    signals.worker_process_init.connect(
        partial(_child_started, main_pid), weak=False, dispatch_uid="nanogrid.worker.children"
    )


def _child_started(main_pid: int, **_: Any) -> None:
    """A child ends with its parent: without the parent, nobody could store the result of its run."""
    tracing.begin(app.settings)
    gc.freeze()  # what a worker has loaded stays loaded: no collection during a run needs to traverse it
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before. PID 1 as parent proves nothing: in a container the main process itself has it.
    if main_pid not in (os.getpid(), os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


@signals.worker_process_shutdown.connect
def _child_ends(**_: Any) -> None:
    """Send the remaining traces: a forked process does not run Python's exit handlers."""
    tracing.end()
