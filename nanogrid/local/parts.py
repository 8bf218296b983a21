"""The parts of the local stack as data: command, address, readiness, and how each one is stopped.

The rule: the parts start in the order of the waves and stop in the reverse order, so that the worker never loses what it
needs to finish its runs.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from nanogrid.errors import ConfigurationError
from nanogrid.local import probes
from nanogrid.local.folder import Ports, StackFolder

Ending = tuple[tuple[signal.Signals, float], ...]

WARM_SHUTDOWN_S = 20.0
"""How long `down` waits for current runs by default."""

_QUICK: Ending = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    `answers` takes the process id. `stands_still`: it answers but does not do its work. `restarted_with` names parts; if one of
    them restarts, this part must restart too.
    """

    name: str
    address: str
    argv: tuple[str, ...]
    answers: Callable[[int], bool]
    stands_still: Callable[[], bool] = lambda: False
    ending: Ending = _QUICK
    port: int | None = None
    port_option: str = ""
    restarted_with: frozenset[str] = frozenset()
    ready_within_s: float = 60.0


def stack_parts(
    folder: StackFolder, ports: Ports, environment: Mapping[str, str], *, warm_shutdown_s: float = WARM_SHUTDOWN_S
) -> tuple[tuple[Part, ...], ...]:
    """All parts in waves: the parts of a wave start together, once the previous wave answers."""
    return (
        (_sqs(ports), _redis(folder, ports)),
        (_flower(ports), _worker(folder, environment, warm_shutdown_s)),
    )


def _sqs(ports: Ports) -> Part:
    command = ("-W", "ignore", "-m", "moto.server", "-H", probes.LOOPBACK, "-p", str(ports.sqs))
    return Part(
        name="sqs",
        address=f"http://{probes.LOOPBACK}:{ports.sqs}",
        argv=(sys.executable, *command),
        answers=lambda _pid: probes.sqs_answers(ports.sqs),
        port=ports.sqs,
        port_option="--sqs-port",
    )


def _redis(folder: StackFolder, ports: Ports) -> Part:
    options = {
        "port": str(ports.redis),
        "bind": probes.LOOPBACK,
        "dir": str(folder.redis_data),
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
        "set-proc-title": "no",  # it would overwrite the environment that marks the process as the stack's
    }
    return Part(
        name="redis",
        address=f"redis://{probes.LOOPBACK}:{ports.redis}",
        argv=("redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))),
        answers=lambda pid: probes.redis_answers(ports.redis, pid),
        port=ports.redis,
        port_option="--redis-port",
    )


def _flower(ports: Ports) -> Part:
    command = ("-m", "celery", "-A", "nanogrid", "flower", f"--address={probes.LOOPBACK}", f"--port={ports.flower}")
    return Part(
        name="flower",
        address=f"http://{probes.LOOPBACK}:{ports.flower}",
        argv=(sys.executable, *command),
        answers=lambda _pid: probes.flower_answers(ports.flower),
        port=ports.flower,
        port_option="--flower-port",
    )


def _worker(folder: StackFolder, environment: Mapping[str, str], warm_shutdown_s: float) -> Part:
    command = ("-m", "celery", "-A", "nanogrid", "worker", "-Q", "python,cpp", "--loglevel", "INFO")
    return Part(
        name="worker",
        address="queues python, cpp",
        argv=(sys.executable, *command),
        answers=lambda _pid: probes.worker_answers(environment["NANOGRID_MONITOR_URL"]),
        stands_still=lambda: probes.worker_stands_still(folder.worker_data),
        # Warm shutdown: current runs end by themselves. Then cold: their messages are returned. Then SIGKILL.
        ending=((signal.SIGTERM, warm_shutdown_s), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)),
        restarted_with=frozenset({"sqs"}),  # its queues were in the memory of the process that ended
    )


def require_installed() -> None:
    """Raise ConfigurationError if Redis or the extra `local` is not installed."""
    if shutil.which("redis-server") is None:
        raise ConfigurationError(
            "redis-server is not installed: install it (Debian: apt-get install redis-server), then run this again"
        )
    missing = [name for name in ("moto", "flask", "flask_cors") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the local stack needs {', '.join(missing)}: install them with: pip install 'nanogrid[local]'"
        )
