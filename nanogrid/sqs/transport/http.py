"""kombu's asynchronous HTTP client with correct timers.

The rule: one timer at a time, in milliseconds. kombu passes curl's milliseconds to a timer that counts seconds, and keeps
every timer that curl replaces: one or two per request, each for as many seconds as curl meant milliseconds.
"""

from __future__ import annotations

from typing import Any

from nanogrid.sqs.transport.kombu_private import CurlTimerHooks, loop_http_client, set_loop_http_client


class PunctualClient(CurlTimerHooks):
    """curl in the worker's event loop."""

    def __init__(self, hub: Any, max_clients: int) -> None:
        self._timer: Any = None
        super().__init__(hub, max_clients)

    def set_timer(self, msecs: int) -> None:
        """Process transfers in so many milliseconds; -1 removes the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if msecs < 0 else self.hub.call_later(msecs / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.process_transfers()


def client_of(hub: Any, max_clients: int) -> PunctualClient:
    """The client of an event loop. The first call creates it."""
    client = loop_http_client(hub)
    if not isinstance(client, PunctualClient):
        client = PunctualClient(hub, max_clients)
        set_loop_http_client(hub, client)
    return client
