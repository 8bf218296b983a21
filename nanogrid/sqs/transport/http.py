"""kombu's asynchronous HTTP client, with the time that curl means.

The rule: one timer at a time, in milliseconds. kombu hands curl's milliseconds to a timer that counts seconds, and keeps
every timer that curl replaces: one or two per request, for as many seconds as they were to be milliseconds.
"""

from __future__ import annotations

from typing import Any

from kombu.asynchronous.http.curl import CurlClient


class PunctualClient(CurlClient):
    """curl in the worker's event loop."""

    def __init__(self, hub: Any, max_clients: int) -> None:
        self._timer: Any = None
        super().__init__(hub, max_clients)

    def _set_timeout(self, msecs: int) -> None:
        """Called by curl: look after transfers in so many milliseconds; -1: no need to."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if msecs < 0 else self.hub.call_later(msecs / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timeout_check()


def client_of(hub: Any, max_clients: int) -> PunctualClient:
    """The client of an event loop; made at the first call."""
    client = getattr(hub, "_current_http_client", None)
    if not isinstance(client, PunctualClient):
        client = hub._current_http_client = PunctualClient(hub, max_clients)
    return client
