"""Flower for an app whose tasks travel by SQS and whose events travel by Redis.

The one rule: no page or call may act on Redis as if it were the broker. Depths are read from SQS, what is sent goes to
SQS, and what has no meaning here is refused with a sentence. Loaded only by `celery -A nanogrid flower`.

Flower as it comes listens on every address without a password. Here:

* Without authentication it listens on loopback, and an address beyond that is refused (`NANOGRID_FLOWER_INSECURE` lifts this).
* On loopback without authentication its API is on, so that the buttons work. What keeps other web pages that run in a
  browser on this machine from pressing them: no CORS headers; the Host must be a local name (against DNS rebinding); what
  changes something must come from Flower's own pages or from no browser at all (Sec-Fetch-Site, Origin).
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
"""Sec-Fetch-Site of Flower's own pages, and of what a person types. `same-site` is another port of this machine."""

KNOWN_OF_A_WORKER = frozenset({"stats", "active_queues"})
"""Answers without which a worker is asked again: its commands, and the consumers of each queue, build on them."""

API_SWITCH = "FLOWER_UNAUTHENTICATED_API"

NO_CREDENTIALS = (
    "Flower has no AWS credentials, so it can neither read the queues nor send: give it a producer's (AWS_ACCESS_KEY_ID and "
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
"""Flower promises to keep none of its classes."""


def install() -> None:
    """Make the flower command start `Dashboard`. Raises click's error if this version of Flower lacks what it builds on."""
    if (problem := FLOWER.problem()) is not None:
        raise click.ClickException(problem)
    flower.command.Flower = Dashboard


# -- who may come in -------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without port) can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen_address(address: str, *, authenticated: bool, insecure: bool) -> str:
    """The address to listen on: the one asked for, and loopback where none is and nobody has to log in.

    Raises click's error for an address beyond loopback without authentication.
    """
    if authenticated:
        return address
    if not address:
        return LOOPBACK
    if not insecure and not is_loopback(address):
        raise click.ClickException(
            f"Flower would listen on {address} and let anyone who reaches it run and end functions: add --basic-auth=USER:PASSWORD "
            "(or --auth), listen on 127.0.0.1, or set NANOGRID_FLOWER_INSECURE=true"
        )
    return address


def refusal(request: HTTPServerRequest, *, local_only: bool) -> str | None:
    """Why an unauthenticated request is refused, or None."""
    host = urlsplit(f"//{request.host}").hostname or ""
    if local_only and not is_loopback(host):
        return f"Without authentication Flower answers to local names only, not to {host!r}."
    if request.method in SAFE_METHODS:
        return None
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None and site not in OWN_PAGES:
        return "Only Flower's own pages may change something here."
    if origin is not None and urlsplit(origin).netloc != request.host:
        return f"Only Flower's own pages may change something here, not those of {origin}."
    return None


# -- queues ----------------------------------------------------------------------------------------------------------


def sqs_address(endpoint_url: str) -> str:
    """Where SQS is, as the pages show it: never with credentials."""
    endpoint = urlsplit(endpoint_url)
    return f"sqs://{endpoint.netloc.rpartition('@')[2]}"


def queue_rows(depth: QueueDepth, consumers: int) -> list[dict[str, Any]]:
    """The lines of the broker page for one queue: itself, and its dead letters where it has a queue for them."""
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
    """What Flower asks for queue lengths."""

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


class Guarded(BaseHandler):
    """Put before each of Flower's own handlers."""

    application: Dashboard

    def prepare(self) -> Any:
        """Refuse what another web page sends, then let Flower check."""
        if not self.application.authenticated:
            reason = refusal(self.request, local_only=not self.application.nanogrid.flower_insecure)
            if reason is not None:
                raise HTTPError(403, reason.replace("%", "%%"))
        return super().prepare()

    def set_default_headers(self) -> None:
        """Flower opens itself to all origins where its API needs no password; a page elsewhere has no business here."""
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")

    @property
    def unauthenticated_api(self) -> bool:
        """Flower's own switch where it is set; else on, as long as nobody beyond this machine can come."""
        if switch := os.environ.get(API_SWITCH):
            return bool(strtobool(switch))
        return self.application.local_only

    def get_broker(self) -> SqsBroker:
        """SQS, whatever the connection for events is."""
        return SqsBroker(self.application.nanogrid, self.application.sqs, self.application.workers)

    def get_active_queue_names(self) -> list[str]:
        """The queues of the runtimes, also while no worker is up, and whatever else workers consume from."""
        active = {
            queue["name"] for info in self.application.workers.values() for queue in info.get("active_queues", ())
        }
        return list(dict.fromkeys([*self.application.nanogrid.runtime_table.queues(), *sorted(active)]))


class GuardedApi(Guarded, BaseApiHandler):
    """Put before the handlers of Flower's API."""

    async def run_blocking(self, *args: Any, **kwargs: Any) -> Any:
        """A request that can never work is the caller's mistake: 400 and the sentence about it.

        Without credentials nothing can be sent. A Flower that only watches is run like that, so the answer says what is missing.
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
    """What an error was raised from, and what that was raised from: kombu puts errors of its own around boto's."""
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


class AbortRefused(BaseApiHandler):
    """In place of Flower's abort, which overwrites a stored result and ends nothing."""

    def post(self, task_id: str) -> None:
        """Name the call that does end a task."""
        raise HTTPError(
            403, f"Abort only marks a task. POST /api/task/revoke/{task_id}?terminate=true ends it.".replace("%", "%%")
        )


_INSTEAD: dict[type[RequestHandler], type[RequestHandler]] = {
    TaskSend: TaskAsyncApply,  # checked and routed to its queue; a task that no worker knows is not sent at all
    TaskAbort: AbortRefused,
}


_guarded: dict[type[RequestHandler], type[RequestHandler]] = {}


def guarded(handler: type[RequestHandler]) -> type[RequestHandler]:
    """A handler of Flower's with ours before it; others (static files) as they are."""
    if handler not in _guarded:
        base = _INSTEAD.get(handler, handler)
        ours: tuple[type, ...] = ()
        if issubclass(base, BaseHandler):
            ours = (GuardedApi,) if issubclass(base, BaseApiHandler) else (Guarded,)
        _guarded[handler] = type(base.__name__, (*ours, base), {})
    return _guarded[handler]


class Dashboard(flower.app.Flower):
    """Flower's application with the broker pages on SQS and the door shut."""

    def __init__(self, options: Any = None, capp: Any = None, **kwargs: Any) -> None:
        self.nanogrid = settings_of(capp)
        self.authenticated = bool(options.basic_auth or options.auth)
        options.address = listen_address(
            options.address, authenticated=self.authenticated, insecure=self.nanogrid.flower_insecure
        )
        self.local_only = bool(options.unix_socket) or (not self.authenticated and is_loopback(options.address))
        capp.set_default()  # Flower looks up results by the process's app, and ours never becomes that by import
        super().__init__(options=options, capp=capp, **kwargs)
        self._take_event = self.events.on_event
        self.events.on_event = self._on_event

    def _on_event(self, event: dict[str, Any]) -> None:
        """Ask a worker about itself once it beats. Flower asks at its own start only, and refuses commands for others.

        Called in the thread that listens for events.
        """
        self._take_event(event)
        kind, worker = event["type"], event["hostname"]
        if kind == "worker-online":  # what is known is about the one that ran before
            self.io_loop.add_callback(self.workers.pop, worker, None)
        elif kind == "worker-heartbeat" and not self.workers.get(worker, {}).keys() >= KNOWN_OF_A_WORKER:
            self.io_loop.add_callback(self.update_workers, worker)

    def start(self) -> None:
        """Run. From here on the app's generic connection, on which Flower listens for events, is the monitoring one."""
        self.capp.connection = functools.partial(monitor_connection, self.nanogrid)
        super().start()

    def get_handler_delegate(self, request: Any, target_class: type[RequestHandler], *args: Any, **kwargs: Any) -> Any:
        """Tornado asks here who serves a request."""
        return super().get_handler_delegate(request, guarded(target_class), *args, **kwargs)

    @functools.cached_property
    def sqs(self) -> Any:
        """A boto3 client; those are thread safe."""
        return sqs_client(self.nanogrid)

    @functools.cached_property
    def broker_uri(self) -> str:
        """Shown on the pages."""
        return sqs_address(self.sqs.meta.endpoint_url)

    @functools.cached_property
    def transport(self) -> str:
        """Kombu's name of the broker's kind."""
        return "sqs"
