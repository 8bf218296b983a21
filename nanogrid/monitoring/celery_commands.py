"""What the verbs of `celery -A nanogrid` do here: those about workers go to Redis, and what SQS cannot do says what to use.

The rule: nothing is loaded and nothing changes but for the one command that is run, and only where the app is NanoGrid's: a
producer's process may run any command for an app of its own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

Callback = Callable[..., Any]

REFUSED = {
    "amqp": "SQS speaks no AMQP: look into queues with `nanogrid status`, Flower's broker page or `aws sqs`",
    "list": "SQS has no exchanges and no bindings, each queue is a runtime's: `nanogrid status` shows them",
    "logtool": "NanoGrid's log has lines of its own, one for each stage of a request: set NANOGRID_LOG_FORMAT=json and read it with `jq`, "
    "or read what ran from Flower or `nanogrid results`",
    "migrate": "messages are moved from one SQS queue to another with `aws sqs start-message-move-task`",
}
"""Verbs that can do nothing here, and what to use."""


def adapt() -> None:
    """Make the verbs of the `celery` command fit.

    To be called where the app is made: the `celery` command has loaded its plugins by then. In any other process this
    does nothing and loads nothing.
    """
    program = getattr(sys.modules.get("celery.bin.celery"), "celery", None)
    if program is None:
        return
    verbs: dict[str, Callback] = {"flower": _flower, "events": _events, "call": _call}
    verbs |= {name: functools.partial(_refuse, name) for name in REFUSED}
    for name, ours in verbs.items():
        command = program.commands.get(name)
        if command is not None and not isinstance(command.callback, functools.partial):
            command.callback = functools.partial(_run, ours, command.callback)


def _run(ours: Callback, original: Callback, *args: Any, **kwargs: Any) -> Any:
    """A verb's callback: ours where the app is NanoGrid's, else Celery's."""
    import click

    from nanogrid.monitoring.connections import is_nanogrid

    app = getattr(click.get_current_context().obj, "app", None)
    if not is_nanogrid(app):
        return original(*args, **kwargs)
    return ours(app, functools.partial(original, *args, **kwargs))


def _flower(_: Any, original: Callback) -> Any:
    """Start our dashboard in the place of plain Flower."""
    from nanogrid.monitoring.dashboard import install

    install()
    return original()


def _events(app: Any, original: Callback) -> Any:
    """Hear what Flower hears."""
    from nanogrid.monitoring.connections import monitor_connection

    app.connection_for_read = functools.partial(monitor_connection, app.settings)
    return original()


def _call(_: Any, original: Callback) -> Any:
    """A request that can never work is told in one sentence."""
    import click

    from nanogrid.errors import NanoGridError

    try:
        return original()
    except NanoGridError as error:
        raise click.ClickException(str(error)) from None


def _refuse(name: str, _app: Any, _original: Callback) -> Any:
    import click

    raise click.ClickException(f"`celery {name}` does nothing here: {REFUSED[name]}")
