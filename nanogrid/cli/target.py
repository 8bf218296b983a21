"""Which deployment a command talks to.

The rule: a deployment that the environment names wins. Only if it names none, the command uses the running local stack,
and prints a note.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanogrid.cli import console
from nanogrid.errors import ConfigurationError

if TYPE_CHECKING:
    from nanogrid.cli.producer import Producer
    from nanogrid.client import Client
    from nanogrid.local.folder import StackState
    from nanogrid.local.plain_aws import PlainAws
    from nanogrid.settings import Settings

REGIONS = frozenset({"AWS_REGION", "AWS_DEFAULT_REGION"})
"""Users set these for other reasons; a region alone does not name a deployment."""


@dataclass(frozen=True)
class Target:
    """Settings of the deployment, whether it is a local stack, and the port of its S3 and SQS if this command has found it."""

    settings: Settings
    is_local: bool
    stack_port: int | None = None

    @property
    def plain_aws(self) -> PlainAws | None:
        """The short cut to S3 and SQS of the local stack, if there is one."""
        from nanogrid.local.plain_aws import PlainAws

        return None if self.stack_port is None else PlainAws(self.stack_port)


def find_target(*, required: bool = True) -> Target:
    """The deployment for this command. Raises ConfigurationError if there is none and one is `required`.

    Adds the local stack's variables to this process's environment, where boto3 reads them.
    """
    named = deployment_variables()
    if named:
        return Target(load_settings(), is_local=_is_local_endpoint())
    folder, state = _running_stack()
    if state is not None:
        console.note(f"using the local stack in {folder}")
        os.environ.update(state.environment)
        return Target(load_settings(), is_local=True, stack_port=state.ports.sqs)
    if required:
        raise ConfigurationError(
            "no deployment was found: no local stack runs (start one with: nanogrid up --detach), and the environment names "
            "none (AWS_*, NANOGRID_RESULT_URL, ...)"
        )
    return Target(load_settings(), is_local=False)


def connect(target: Target) -> Client:
    """A client for a waiting user: it reports that Redis is unavailable, where a worker would retry forever."""
    from nanogrid.client import Client

    client = Client(target.settings)
    client.app.conf.result_backend_always_retry = False
    return client


def producer(target: Target) -> Client | Producer:
    """What sends one request or reads one result. Celery is needed only for traces, which OpenTelemetry takes of its producer."""
    if target.settings.tracing:
        return connect(target)
    from nanogrid.cli.producer import Producer

    return Producer(target.settings, target.plain_aws)


def deployment_variables() -> list[str]:
    """Variables in the environment that name a deployment."""
    from nanogrid.local.environment import names_a_place

    return sorted(name for name in os.environ if names_a_place(name) and name not in REGIONS)


def load_settings() -> Settings:
    """The settings from the environment, also set for this process."""
    from nanogrid.settings import configure, from_environment

    settings = from_environment()
    configure(settings)
    return settings


def _running_stack() -> tuple[str, StackState | None]:
    from nanogrid.local.folder import StackFolder

    folder = StackFolder()
    state = folder.read()
    if state is None or not any(record.is_alive for record in state.processes.values()):
        return str(folder.root), None
    return str(folder.root), state


def _is_local_endpoint() -> bool:
    """Whether the named S3 is a server on this machine, as after `eval "$(nanogrid env)"`."""
    from urllib.parse import urlsplit

    url = os.environ.get("NANOGRID_S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3")
    host = urlsplit(url or os.environ.get("AWS_ENDPOINT_URL", "")).hostname
    return host in {"127.0.0.1", "localhost", "::1"}
