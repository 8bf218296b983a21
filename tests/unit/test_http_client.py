"""The HTTP client of the worker's event loop has one timer, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub

from nanogrid.sqs.transport.http import PunctualClient, client_of


@pytest.fixture
def hub() -> Iterator[Any]:
    """An event loop for this test."""
    hub = Hub()
    yield hub
    hub.close()


def due_s(hub: Any, client: PunctualClient) -> list[float]:
    """Seconds until each active timer of the client is due."""
    own = client._on_timer
    return [
        entry.eta - time.monotonic() for entry in hub.timer.queue if entry.entry.fun == own and not entry.entry.canceled
    ]


def test_curls_milliseconds_are_milliseconds(hub: Any) -> None:
    """A timer of 500 is due in half a second, and -1 removes it."""
    client = client_of(hub, 1)
    client.set_timer(500)
    (due,) = due_s(hub, client)
    assert 0.3 < due <= 0.51
    client.set_timer(-1)
    assert due_s(hub, client) == []


def test_a_new_timer_takes_the_place_of_the_old_one(hub: Any) -> None:
    """However many timers curl sets, only one is active."""
    client = client_of(hub, 1)
    for msecs in range(1000, 2000, 10):
        client.set_timer(msecs)
    assert len(due_s(hub, client)) == 1


def test_a_loop_has_one_client(hub: Any) -> None:
    """All channels of a worker share a client, and with it curl's open connections."""
    assert client_of(hub, 1) is client_of(hub, 1)
