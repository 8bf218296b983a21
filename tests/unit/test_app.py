"""The Celery app of a process with many threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nanogrid.celery import make_app
from nanogrid.configuration import celery_configuration
from nanogrid.results.backend import ResultBackend
from nanogrid.settings import Settings


def test_threads_that_use_an_app_first_at_once_all_find_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that comes while another one computes the configuration waits for it."""
    begun, other = threading.Event(), threading.Event()

    def slow(settings: Settings) -> dict[str, Any]:
        begun.set()
        other.wait(0.5)  # the other thread is given the time to see too little; it must wait instead
        return celery_configuration(settings)

    monkeypatch.setattr("nanogrid.celery.celery_configuration", slow)
    app = make_app(Settings())
    found: list[object] = []

    def use() -> None:
        found.append(type(app.backend))
        other.set()

    first = threading.Thread(target=use)
    first.start()
    assert begun.wait(10)
    second = threading.Thread(target=use)
    second.start()
    first.join(10)
    second.join(10)
    assert found == [ResultBackend, ResultBackend]


def test_a_configuration_that_fails_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next use computes all of it, and finds no half of it."""
    app = make_app(Settings(result_url="redis://elsewhere:1/0"))

    def failing(settings: Settings) -> dict[str, Any]:
        raise ValueError("no settings")

    with monkeypatch.context() as patch:
        patch.setattr("nanogrid.celery.celery_configuration", failing)
        with pytest.raises(ValueError, match="no settings"):
            app.conf.get("broker_url")
    assert app.conf.result_backend.endswith("redis://elsewhere:1/0")
    assert isinstance(app.backend, ResultBackend)
