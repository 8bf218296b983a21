"""The Celery application, where `celery -A nanogrid` finds it.

Importing it reads no environment and opens no connection; the configuration is computed when it is first needed.
The import never makes it the process's current app, because a producer may have its own.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

from celery import Celery

from nanogrid.configuration import celery_configuration
from nanogrid.connections import forks
from nanogrid.monitoring.celery_commands import adapt
from nanogrid.monitoring.celery_private import forget_broker_connections
from nanogrid.settings import Settings, current
from nanogrid.sqs.canvas import refuse_unusable
from nanogrid.sqs.submission import (
    EAGER,
    IN_ONE_TASK,
    Submission,
    merge_fields,
    refuse_here,
    refuse_in_one_task,
    refuse_other_forms,
)
from nanogrid.wire.names import EXECUTE, REDUCE, SENT_AT


class NanoGrid(Celery):
    """A Celery app with SQS as broker and Redis beside it for events and remote control."""

    owner_address: Path | None = None
    """The socket of the owner of this worker's containers. A worker sets it before it forks its children."""

    _is_configured = _is_being_configured = False

    control_cls = "nanogrid.monitoring.connections:Control"
    log_cls = "nanogrid.telemetry.logs:Logging"

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        self._configuring = threading.RLock()
        super().__init__(*args, **kwargs)
        self._settings = settings
        self.add_defaults(self._defaults)
        forks.renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Leave the connections to SQS to the parent, in a forked child."""
        self._configuring = threading.RLock()  # a thread of the parent may hold the old one
        forget_broker_connections(self)

    def _defaults(self) -> dict[str, Any]:
        return celery_configuration(self.settings)

    @property
    def conf(self) -> Any:
        """Celery's configuration. The first use computes it, and other threads wait for that.

        Celery shows a configuration to other threads before its defaults are in it: they would find no result backend.
        """
        if not self._is_configured:
            with self._configuring:
                if not self._is_configured and not self._is_being_configured:  # what computes it reads it, too
                    self._is_being_configured = True
                    try:
                        _ = Celery.conf.fget(self).result_backend
                        self._is_configured = True
                    except BaseException:
                        # Celery has used up the defaults, and would go on without any.
                        self.configured = False
                        self.conf = None
                        self.add_defaults(self._defaults)
                        raise
                    finally:
                        self._is_being_configured = False
        return Celery.conf.fget(self)

    @conf.setter
    def conf(self, value: Any) -> None:
        Celery.conf.fset(self, value)

    @property
    def settings(self) -> Settings:
        """The settings of this app if it has its own, else those of the process."""
        return self._settings or current()

    @cached_property
    def Worker(self) -> Any:  # noqa: N802  # Celery's name
        """The class of this app's workers."""
        return self.subclass_with_self("nanogrid.worker.controller:Worker")

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send a task by name, and a request as `execute_function` sends it.

        Raises InvalidRequestError for a request that can never work or is not sent as JSON, and for a Celery task that would
        run many requests in one; ConfigurationError if tasks are eager.
        """
        if name in IN_ONE_TASK and isinstance(kwargs, dict) and _names_a_request(kwargs.get("task")):
            refuse_in_one_task(name)
        if name in (EXECUTE, REDUCE):
            if self.conf.task_always_eager:
                refuse_here(EAGER)
            refuse_other_forms(
                options.get("serializer") or self.conf.task_serializer,
                options.get("compression") or self.conf.task_compression,
            )
        if name == EXECUTE and SENT_AT not in (options.get("headers") or {}):
            refuse_unusable(options, self.settings)
            submission = Submission.of(merge_fields(args, kwargs), self.settings, task_id=options.get("task_id"))
            args, kwargs, options = (submission.wire,), {}, submission.options(options)
        return super().send_task(name, args, kwargs, *more, **options)


def _names_a_request(signature: object) -> bool:
    return isinstance(signature, dict) and signature.get("task") in (EXECUTE, REDUCE)


def make_app(settings: Settings | None = None) -> NanoGrid:
    """Create an app with its own settings, for a process that talks to more than one NanoGrid."""
    return NanoGrid("nanogrid", settings=settings, set_as_current=False, include=["nanogrid.tasks", "nanogrid.worker"])


app = make_app()
adapt()

# A checkout has celeryconfig.py beside the package; an installed package has none. A producer's own file is not read here.
_celeryconfig = Path(__file__).resolve().parent.parent / "celeryconfig.py"
if _celeryconfig.is_file():
    _spec = importlib.util.spec_from_file_location("nanogrid_celeryconfig", _celeryconfig)
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    app.config_from_object(_module)
