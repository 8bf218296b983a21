"""Flower for an app with SQS as its broker and Redis for its events.

The rule: no page or API call uses Redis as the broker. Depths come from SQS, tasks are sent to SQS, and calls without a meaning
here are refused in one sentence. Only `celery -A nanogrid flower` loads this module.

Plain Flower listens on every address without a password. This one differs:

* Without authentication it listens on loopback and refuses other addresses (`NANOGRID_FLOWER_INSECURE` allows them).
* On loopback without authentication its API is on, so that the buttons work. Other web pages in a browser on this machine
  cannot use it: there are no CORS headers, the Host must be a local name (against DNS rebinding), and a request that changes
  something must come from Flower's own pages or from no browser (Sec-Fetch-Site, Origin).
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import click
import flower
import flower.app
import flower.command
import flower.events
from botocore.exceptions import NoCredentialsError
from flower.api import BaseApiHandler
from flower.api.tasks import TaskAbort, TaskAsyncApply, TaskSend
from flower.utils import strtobool
from flower.views import BaseHandler
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from nanogrid.connections.private_parts import PrivateParts
from nanogrid.connections.sqs import sqs_client
from nanogrid.errors import InvalidRequestError
from nanogrid.monitoring.connections import monitor_connection, settings_of
from nanogrid.settings import Settings
from nanogrid.sqs.queues import QueueDepth, depths

LOOPBACK = "127.0.0.1"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_PAGES = frozenset({"same-origin", "none"})
"""Sec-Fetch-Site of Flower's own pages, and of a typed address. `same-site` is another port of this machine."""

REQUIRED_ANSWERS = frozenset({"stats", "active_queues"})
"""A worker is asked again until these answers are known: its commands and the consumers of each queue depend on them."""

API_SWITCH = "FLOWER_UNAUTHENTICATED_API"

NO_CREDENTIALS = (
    "Flower has no AWS credentials, so it can neither read queues nor send requests: give it a producer's (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY), not the worker's"
)

FLOWER = PrivateParts(
    "flower",
    "2.2",
    "dashboard",
    (
        (flower.command, ("Flower",)),
        (flower.app.Flower, ("start", "update_workers", "workers", "broker_uri", "get_handler_delegate")),
        (flower.events.Events, ("on_event",)),
        (BaseHandler, ("get_broker", "get_active_queue_names", "set_default_headers", "unauthenticated_api")),
        (BaseApiHandler, ("prepare", "run_blocking")),
    ),
)
"""Flower has no public API for extensions, so all names of it count as private."""


def install() -> None:
    """Make the flower command start `Dashboard`. Raises click's error if this version of Flower lacks what it builds on."""
    if (problem := FLOWER.problem()) is not None:
        raise click.ClickException(problem)
    flower.command.Flower = Dashboard


# -- access control --------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without port) always means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen_address(address: str, *, authenticated: bool, insecure: bool) -> str:
    """The address to listen on: the given one, or loopback if none is given and there is no authentication.

    Raises click's error for an address beyond loopback without authentication.
    """
    if authenticated:
        return address
    if not address:
        return LOOPBACK
    if not insecure and not is_loopback(address):
        raise click.ClickException(
            f"Flower would listen on {address} and let anyone who reaches it run and kill functions: add --basic-auth=USER:PASSWORD "
            "(or --auth), listen on 127.0.0.1, or set NANOGRID_FLOWER_INSECURE=true"
        )
    return address


def refusal(request: HTTPServerRequest, *, local_only: bool) -> str | None:
    """Why an unauthenticated request is refused, or None."""
    host = urlsplit(f"//{request.host}").hostname or ""
    if local_only and not is_loopback(host):
        return f"Without authentication Flower accepts only local host names, not {host!r}."
    if request.method in SAFE_METHODS:
        return None
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None and site not in OWN_PAGES:
        return "Only Flower's own pages may send this request."
    if origin is not None and urlsplit(origin).netloc != request.host:
        return f"Only Flower's own pages may send this request, not those of {origin}."
    return None


# -- queues ----------------------------------------------------------------------------------------------------------


def sqs_address(endpoint_url: str) -> str:
    """The address of SQS for the pages, without credentials."""
    endpoint = urlsplit(endpoint_url)
    return f"sqs://{endpoint.netloc.rpartition('@')[2]}"


def queue_rows(depth: QueueDepth, consumers: int) -> list[dict[str, Any]]:
    """The rows of the broker page for one queue: one for it, and one for its dead-letter queue if it has one."""
    waiting, held = depth.visible + depth.delayed, depth.in_flight
    rows: list[dict[str, Any]] = [
        {
            "name": depth.queue,
            "messages": waiting + held,
            "messages_ready": depth.visible,
            "messages_unacknowledged": held,
            "consumers": consumers,
        }
    ]
    if depth.dead_letters is not None:
        rows.append(
            {
                "name": f"{depth.queue} (dead letters)",
                "messages": depth.dead_letters,
                "messages_ready": depth.dead_letters,
                "messages_unacknowledged": 0,
                "consumers": 0,
            }
        )
    return rows


class SqsBroker:
    """Flower's source of queue lengths."""

    def __init__(self, settings: Settings, client: Any, workers: dict[str, Any]) -> None:
        self._settings = settings
        self._client = client
        self._workers = workers

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """One or two rows per queue, read from SQS in another thread."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, depths, list(names), self._settings, self._client)
        except NoCredentialsError as error:
            raise HTTPError(503, NO_CREDENTIALS) from error
        return [row for depth in found for row in queue_rows(depth, self._consumers(depth.queue))]

    def _consumers(self, queue: str) -> int:
        return sum(
            any(active["name"] == queue for active in info.get("active_queues", ())) for info in self._workers.values()
        )


# -- Flower ----------------------------------------------------------------------------------------------------------


class AccessGuard(BaseHandler):
    """Goes before each of Flower's own handlers."""

    application: Dashboard

    def prepare(self) -> Any:
        """Refuse requests from other web pages. Then Flower's own checks follow."""
        if not self.application.authenticated:
            reason = refusal(self.request, local_only=not self.application.nanogrid.flower_insecure)
            if reason is not None:
                raise HTTPError(403, reason.replace("%", "%%"))
        return super().prepare()

    def set_default_headers(self) -> None:
        """Replace Flower's headers: they allow all origins if its API needs no password."""
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")

    @property
    def unauthenticated_api(self) -> bool:
        """Flower's own switch if it is set; else on, if only this machine can connect."""
        if switch := os.environ.get(API_SWITCH):
            return bool(strtobool(switch))
        return self.application.local_only

    def get_broker(self) -> SqsBroker:
        """SQS, whatever connection receives the events."""
        return SqsBroker(self.application.nanogrid, self.application.sqs, self.application.workers)

    def get_active_queue_names(self) -> list[str]:
        """The queues of the runtimes, also while no worker is up, and all other queues that workers consume."""
        active = {
            queue["name"] for info in self.application.workers.values() for queue in info.get("active_queues", ())
        }
        return list(dict.fromkeys([*self.application.nanogrid.runtime_table.queues(), *sorted(active)]))


class ApiAccessGuard(AccessGuard, BaseApiHandler):
    """Goes before the handlers of Flower's API."""

    async def run_blocking(self, *args: Any, **kwargs: Any) -> Any:
        """Answer an invalid request with 400 and its sentence.

        Without credentials nothing can be sent. A Flower that only watches runs without them, so the answer says what is missing.
        """
        try:
            return await super().run_blocking(*args, **kwargs)
        except HTTPError as error:
            for cause in causes(error):
                if isinstance(cause, InvalidRequestError):
                    raise HTTPError(400, str(cause).replace("%", "%%")) from cause
                if isinstance(cause, NoCredentialsError):
                    raise HTTPError(503, NO_CREDENTIALS) from cause
            raise


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error that an error was raised from, and so on: kombu wraps boto's errors in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


class AbortRefusal(BaseApiHandler):
    """Replaces Flower's abort, which overwrites a stored result and ends nothing."""

    def post(self, task_id: str) -> None:
        """Refuse, and name the call that ends a task."""
        raise HTTPError(
            403, f"Abort only marks a task. POST /api/task/revoke/{task_id}?terminate=true ends it.".replace("%", "%%")
        )


_INSTEAD: dict[type[RequestHandler], type[RequestHandler]] = {
    TaskSend: TaskAsyncApply,  # checked and routed to its queue; a task that no worker knows is not sent
    TaskAbort: AbortRefusal,
}


_with_guards: dict[type[RequestHandler], type[RequestHandler]] = {}


def with_guard(handler: type[RequestHandler]) -> type[RequestHandler]:
    """One of Flower's handlers with a guard before it. Other handlers (static files) get none."""
    if handler not in _with_guards:
        base = _INSTEAD.get(handler, handler)
        guards: tuple[type, ...] = ()
        if issubclass(base, BaseHandler):
            guards = (ApiAccessGuard,) if issubclass(base, BaseApiHandler) else (AccessGuard,)
        _with_guards[handler] = type(base.__name__, (*guards, base), {})
    return _with_guards[handler]


class Dashboard(flower.app.Flower):
    """Flower's application with its broker pages on SQS and its access restricted."""

    def __init__(self, options: Any = None, capp: Any = None, **kwargs: Any) -> None:
        self.nanogrid = settings_of(capp)
        self.authenticated = bool(options.basic_auth or options.auth)
        options.address = listen_address(
            options.address, authenticated=self.authenticated, insecure=self.nanogrid.flower_insecure
        )
        self.local_only = bool(options.unix_socket) or (not self.authenticated and is_loopback(options.address))
        capp.set_default()  # Flower reads results through the process's current app, which this app never becomes by import
        super().__init__(options=options, capp=capp, **kwargs)
        self._take_event = self.events.on_event
        self.events.on_event = self._on_event

    def _on_event(self, event: dict[str, Any]) -> None:
        """Inspect a worker at its first heartbeat. Flower does so only at its own start, and refuses commands for unknown workers.

        Called in the thread that receives events.
        """
        self._take_event(event)
        kind, worker = event["type"], event["hostname"]
        if kind == "worker-online":  # the known answers are of the process before
            self.io_loop.add_callback(self.workers.pop, worker, None)
        elif kind == "worker-heartbeat" and not self.workers.get(worker, {}).keys() >= REQUIRED_ANSWERS:
            self.io_loop.add_callback(self.update_workers, worker)

    def start(self) -> None:
        """Run. From now on the app's generic connection, on which Flower receives events, is the one to the monitoring Redis."""
        self.capp.connection = functools.partial(monitor_connection, self.nanogrid)
        super().start()

    def get_handler_delegate(self, request: Any, target_class: type[RequestHandler], *args: Any, **kwargs: Any) -> Any:
        """Called by Tornado for the handler of each request."""
        return super().get_handler_delegate(request, with_guard(target_class), *args, **kwargs)

    @functools.cached_property
    def sqs(self) -> Any:
        """A boto3 SQS client. Threads may share it."""
        return sqs_client(self.nanogrid)

    @functools.cached_property
    def broker_uri(self) -> str:
        """The broker's address for the pages."""
        return sqs_address(self.sqs.meta.endpoint_url)

    @functools.cached_property
    def transport(self) -> str:
        """kombu's name of the transport."""
        return "sqs"
