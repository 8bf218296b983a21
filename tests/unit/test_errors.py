"""Errors survive process boundaries, and each has its cause."""

from __future__ import annotations

import inspect
import pickle

import pytest
from celery.backends.base import Backend

from nanogrid import errors
from nanogrid.celery import make_app
from nanogrid.telemetry.counters import CAUSES

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.NanoGridError)]


def example(cls: type[errors.NanoGridError]) -> errors.NanoGridError:
    if cls is errors.InvalidRequestError:
        return errors.InvalidRequestError("timeoutMs", "0 is too small")
    if cls is errors.SubmissionError:
        return errors.SubmissionError(["a"], {"b": "SQS is busy"})
    return cls("what is wrong, which value, what to do")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickling(cls: type[errors.NanoGridError]) -> None:
    """After crossing a process boundary, an error has the same class and sentence."""
    error = example(cls)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert (str(back), back.args) == (str(error), error.args)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_celerys_json_backend(cls: type[errors.NanoGridError]) -> None:
    """An error that Celery stores as JSON is raised with the same class and sentence."""
    backend = Backend(app=make_app())
    error = example(cls)
    back = backend.exception_to_python(backend.prepare_exception(error, serializer="json"))
    assert type(back) is cls
    assert str(back) == str(error)


def test_only_platform_trouble_is_retryable() -> None:
    """What the sender or the operator must correct is never retried."""
    retryable = {cls.__name__ for cls in CLASSES if cls.retryable}
    assert retryable == {
        "ClaimBusyError",
        "CodeUnavailableError",
        "ContainerError",
        "ContainerLostError",
        "ContainerStartError",
        "LimitLoweredError",
        "ImageUnavailableError",
        "PoolExhaustedError",
        "RedisUnavailableError",
    }


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.retryable])
def test_every_retryable_error_is_counted_under_a_known_cause(cls: type[errors.NanoGridError]) -> None:
    """The metric's labels are few and known. A busy claim ends no attempt, so it has no cause of its own."""
    assert cls.cause in CAUSES
    assert (cls.cause == "unexpected") == (cls is errors.ClaimBusyError)
