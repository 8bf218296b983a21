"""The bootstep that checks and prepares at start, and answers for what died in a queue."""

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
from nanogrid.worker.owner_step import OwnerStep

log = get_logger(__name__)


class PreparationStep(bootsteps.StartStopStep):
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
        if OwnerStep.owner is not None:
            OwnerStep.owner.prewarm(ready)

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
        context = Context(dead.context)
        task.backend.mark_as_done(dead.request_id, result, request=context)
        task.backend.answer_after(context, result)
        count(counters.DEAD_LETTER)
        return True
