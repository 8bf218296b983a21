"""What `celery -A nanogrid flower` starts: our dashboard in the place of plain Flower, loaded only by that command."""

from __future__ import annotations

import functools
import sys
from typing import Any


def use_dashboard() -> None:
    """Let `celery -A nanogrid flower` start NanoGrid's dashboard.

    To be called where the app is made: the `celery` command has loaded its plugins by then. In any other process this
    does nothing and loads nothing; in one that runs another command, it costs one attribute.
    """
    module = sys.modules.get("flower.command")
    command = getattr(module, "flower", None)
    if command is None or isinstance(command.callback, functools.partial):
        return
    command.callback = functools.partial(_run_flower, command.callback)


def _run_flower(original: Any, *args: Any, **kwargs: Any) -> Any:
    from nanogrid.dashboard import install

    install()
    return original(*args, **kwargs)
