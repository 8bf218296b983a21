"""The bootstep that checks queues and pulls images at start, and stores results for dead-lettered requests."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

from celery import bootsteps
from celery.app.task import Context
from celery.utils.log import get_logger
from celery.worker import components

from nanogrid.celery import NanoGrid
from nanogrid.errors import NanoGridError
from nanogrid.execution.container.engine import Engine
from nanogrid.result import not_run
from nanogrid.sqs.dead_letters import DeadLetterReader, DeadRequest
from nanogrid.sqs.queues import check_queues
from nanogrid.tasks import load_result
from nanogrid.telemetry import counters
from nanogrid.telemetry.events import count
from nanogrid.wire.names import EXECUTE
from nanogrid.worker.state import WorkerState

log = get_logger(__name__)


class PreparationStep(bootsteps.StartStopStep):
    """Logs problems with the queues, pulls missing images, and stores results for dead-lettered requests."""

    requires = (components.Pool,)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._app: NanoGrid = worker.app
        self._state: WorkerState = worker.nanogrid
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, worker: Any) -> None:
        """Check the queues, then start the threads that must not delay the first request."""
        queues = list(self._app.amqp.queues.consume_from)
        self._check(queues)
        for target, arguments in ((self._prepare_runtimes, (queues,)), (self._dead_letters, ())):
            thread = threading.Thread(target=target, args=arguments, name=f"worker{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, worker: Any) -> None:
        """Stop the threads. A running image pull ends with the process."""
        self._stopping.set()

    terminate = stop

    def _check(self, queues: list[str]) -> None:
        """Log one line per finding. A worker without its queues cannot start; if SQS is down, the worker retries."""
        findings = check_queues(queues, self._app.settings)
        for finding in findings:
            log.warning("%s", finding)
        if any(finding.is_missing for finding in findings):
            log.critical("the worker cannot start without its queues")
            raise SystemExit(1)

    def _prepare_runtimes(self, queues: list[str]) -> None:
        """Pull the images of the runtimes whose queues this worker reads, then prewarm containers."""
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
        if self._state.owner is not None:
            self._state.owner.prewarm(ready)

    def _dead_letters(self) -> None:
        reader = DeadLetterReader(self._app.settings, self._answer_dead)
        while not self._stopping.wait(self._app.settings.dead_letter_check_s):
            try:
                reader.scan()
            except Exception as error:  # noqa: BLE001  # the next scan may work
                log.warning("the dead-letter queues could not be read: %s", error)

    def _answer_dead(self, dead: DeadRequest) -> bool:
        """Store why a request was dead-lettered, unless it has a result, and answer what follows it. True: stored now."""
        task = self._app.tasks[EXECUTE]
        if load_result(task, dead.request_id) is not None:
            return False
        result = not_run(dead.request_id, dead.function_id, dead.reason)
        context = Context(dead.context)
        task.backend.mark_as_done(dead.request_id, result, request=context)
        task.backend.answer_after(context, result)
        count(counters.DEAD_LETTER)
        return True
