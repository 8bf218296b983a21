"""What a worker has beside Celery's own parts: the owner of its containers, and what it checks and prepares at start.

Imported by `celery -A nanogrid worker` alone. The main process owns; the children, forked from it, only ask.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from contextlib import closing
from typing import Any

from celery import bootsteps, signals
from celery.app.task import Context
from celery.utils.log import get_logger
from celery.worker import components

from nanogrid.celery import NanoGrid, app
from nanogrid.container.engine import Engine
from nanogrid.dead_letters import DeadLetterReader, DeadRequest
from nanogrid.errors import ConfigurationError, NanoGridError
from nanogrid.pool.lease import use_owner
from nanogrid.pool.owner import Owner
from nanogrid.queues import check_queues
from nanogrid.result import not_run
from nanogrid.settings import Settings
from nanogrid.submission import EXECUTE
from nanogrid.tasks import load_result

log = get_logger(__name__)
logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells at INFO, for each client, where it found credentials

PR_SET_PDEATHSIG = 1
SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another one wants it. Python's 5 ms are longer than a whole warm run."""
USED_BY_THREADS = ("docker", "docker.errors", "docker.utils", "requests.exceptions")

_owner: Owner | None = None
_main_pid = 0


class Containers(bootsteps.StartStopStep):
    """Owns the containers of this worker. Starts before the children and stops after them."""

    requires = (components.Hub,)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._settings: Settings = worker.app.settings

    def start(self, worker: Any) -> None:
        """Take the data folder, remove what dead workers left, and listen for the children."""
        global _owner, _main_pid
        _main_pid = os.getpid()
        # A child that is forked while a thread imports something finds that module locked for ever: import it all before.
        for module in USED_BY_THREADS:
            importlib.import_module(module)
        sys.setswitchinterval(SWITCH_S)
        try:
            _owner = Owner(self._settings)
        except ConfigurationError as error:
            log.critical("the worker cannot start: %s", error)
            raise SystemExit(1) from None
        _owner.start()
        use_owner(_owner.address)
        log.info("containers: owner %s in %s", _owner.id, self._settings.data_dir)

    def stop(self, worker: Any) -> None:
        """Destroy every container of this worker."""
        global _owner
        if _owner is not None:
            use_owner(None)
            _owner.stop()
            _owner = None

    terminate = stop


class Preparation(bootsteps.StartStopStep):
    """Says at start what is wrong with the queues, fetches missing images, and answers for what died in a queue."""

    requires = (components.Pool,)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._app: NanoGrid = worker.app
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, worker: Any) -> None:
        """Look at the queues, then begin what does not hold up the first task."""
        queues = list(self._app.amqp.queues.consume_from)
        self._check(queues)
        for target, arguments in ((self._prepare_runtimes, (queues,)), (self._dead_letters, ())):
            thread = threading.Thread(target=target, args=arguments, name=f"worker{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, worker: Any) -> None:
        """End the threads; a pull that is under way ends with the process."""
        self._stopping.set()

    terminate = stop

    def _check(self, queues: list[str]) -> None:
        """One line per finding. A worker without its queues cannot start; one whose SQS is away tries until it is back."""
        findings = check_queues(queues, self._app.settings)
        for finding in findings:
            log.warning("%s", finding)
        if any(finding.is_missing for finding in findings):
            log.critical("the worker cannot start without its queues")
            raise SystemExit(1)

    def _prepare_runtimes(self, queues: list[str]) -> None:
        """Fetch the images of the runtimes whose queues are read, and have containers made beforehand."""
        ready = []
        with closing(Engine(self._app.settings)) as engine:
            for name, runtime in self._app.settings.runtime_table.items():
                if runtime.queue not in queues:
                    continue
                try:
                    engine.ensure_image(runtime.image)
                except NanoGridError as error:
                    log.warning("runtime %s: %s", name, error)
                ready.append(name)
        if _owner is not None:
            _owner.prewarm(ready)

    def _dead_letters(self) -> None:
        reader = DeadLetterReader(self._app.settings, self._answer_for_dead)
        while not self._stopping.wait(self._app.settings.dead_letter_check_s):
            try:
                reader.scan()
            except Exception as error:  # noqa: BLE001  # the next scan may work
                log.warning("the dead-letter queues could not be read: %s", error)

    def _answer_for_dead(self, dead: DeadRequest) -> bool:
        """Store why a request died, unless it has a result, and let a chord that waits for it go on. True: stored now."""
        task = self._app.tasks[EXECUTE]
        if load_result(task, dead.request_id) is not None:
            return False
        result = not_run(dead.request_id, dead.function_id, dead.reason)
        task.backend.mark_as_done(dead.request_id, result.to_wire(), request=Context(dead.context))
        return True


@signals.worker_process_init.connect
def _child_started(**_: Any) -> None:
    """A child keeps nothing of the owner's, and ends with its parent: what it runs could not be answered for any more."""
    if _owner is not None:
        _owner.leave_to_parent()
    gc.freeze()  # what a worker has loaded stays: no collection need look at it during a run
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have gone before. It is not told by pid 1: in a container that is the main process itself.
    if _main_pid not in (os.getpid(), os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


app.steps["worker"] |= {Containers, Preparation}
# Celery orders steps by what they require: the process pool comes after the owner, and goes before it.
components.Pool.requires = (*components.Pool.requires, Containers)
