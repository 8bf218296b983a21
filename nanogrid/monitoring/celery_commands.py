"""Adapts the commands of `celery -A nanogrid`: those about workers use Redis, and those that SQS cannot do name an alternative.

The rule: only the command that runs is changed and loaded, and only if the app is NanoGrid's. A producer's process may run any
command for its own app.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

Callback = Callable[..., Any]

REFUSED = {
    "amqp": "SQS has no AMQP interface: read queues with `nanogrid status`, Flower's broker page or `aws sqs`",
    "list": "SQS has no exchanges and bindings, and each queue belongs to a runtime: `nanogrid status` shows them",
    "logtool": "NanoGrid's log has its own format, one line per stage of a request: set NANOGRID_LOG_FORMAT=json and read it with `jq`, "
    "or use Flower or `nanogrid results`",
    "migrate": "move messages from one SQS queue to another with `aws sqs start-message-move-task`",
}
"""Commands that have no meaning here, and what to use instead."""


def adapt() -> None:
    """Adapt the commands of the `celery` program.

    Call it when the app is created: the `celery` program has loaded its plugins by then. In any other process this does nothing
    and loads nothing.
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
    """Run a command: `ours` if the app is NanoGrid's, else Celery's own callback."""
    import click

    from nanogrid.monitoring.connections import is_nanogrid

    app = getattr(click.get_current_context().obj, "app", None)
    if not is_nanogrid(app):
        return original(*args, **kwargs)
    return ours(app, functools.partial(original, *args, **kwargs))


def _flower(_: Any, original: Callback) -> Any:
    """Start NanoGrid's dashboard instead of plain Flower."""
    from nanogrid.monitoring.dashboard import install

    install()
    return original()


def _events(app: Any, original: Callback) -> Any:
    """Receive events from Redis, as Flower does."""
    from nanogrid.monitoring.connections import monitor_connection

    app.connection_for_read = functools.partial(monitor_connection, app.settings)
    return original()


def _call(_: Any, original: Callback) -> Any:
    """Report an invalid request in one sentence, without a traceback."""
    import click

    from nanogrid.errors import NanoGridError

    try:
        return original()
    except NanoGridError as error:
        raise click.ClickException(str(error)) from None


def _refuse(name: str, _app: Any, _original: Callback) -> Any:
    import click

    raise click.ClickException(f"`celery {name}` does not work with NanoGrid: {REFUSED[name]}")
