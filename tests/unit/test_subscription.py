"""What a command that sends one request without Celery shares with Celery: the keys of results, and what a stored value means."""

from __future__ import annotations

from nanogrid.celery import make_app
from nanogrid.result import Outcome, not_run
from nanogrid.results.subscription import result_of
from nanogrid.settings import Settings
from nanogrid.wire.names import RESULT_KEY


def test_the_key_of_a_result_is_that_of_celery() -> None:
    """Subscribing to another one would wait for ever."""
    key = make_app(Settings(aws_region="eu-central-1")).backend.get_key_for_task("an id")
    assert key == f"{RESULT_KEY}an id".encode()


def test_a_stored_result_is_read() -> None:
    """As the worker stored it."""
    stored = not_run("r", "f", "a reason")
    assert result_of("r", stored.to_wire()) == stored


def test_a_stored_exception_is_not_run() -> None:
    """Celery stores one if no worker stored a result."""
    result = result_of("r", {"exc_type": "WorkerLostError", "exc_message": ["gone"]})
    assert result.outcome is Outcome.NOT_RUN
    assert "WorkerLostError" in result.stderr
