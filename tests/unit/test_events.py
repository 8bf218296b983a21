"""Events from the processes of a worker, and who handles them."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence

import pytest

from nanogrid.telemetry.event_thread import EventThread
from nanogrid.telemetry.events import LOST, CountEvent, Event, EventPipe, RequestEvent, RunEvent, count, emit

RUN = RunEvent("f", "abc", 1.5, "SUCCEEDED", 2.5, None, 4096, 128, 256, killed_for_memory=False)


@pytest.fixture
def pipe() -> Iterator[EventPipe]:
    made = EventPipe()
    yield made
    made.close()


def test_what_is_told_comes_out_as_it_was(pipe: EventPipe) -> None:
    ended = RequestEvent("f", "python", "FAILED", "warm", {"run": 1.25, "store": None}, 4096, 128, 2)
    emit(RUN)
    emit(ended)
    count("retries", "S3", 3)
    assert pipe.read() == [RUN, ended, CountEvent("retries", "S3", 3)]
    assert pipe.read() == []


def test_outside_of_a_worker_nothing_is_told() -> None:
    emit(RUN)  # there is no pipe: neither an error nor a wait


def test_events_of_several_processes_never_mix(pipe: EventPipe) -> None:
    context = multiprocessing.get_context("fork")

    def child(number: int) -> None:
        for amount in range(200):
            count(f"child-{number}", "x" * 300, amount)

    children = [context.Process(target=child, args=(number,)) for number in range(4)]
    for process in children:
        process.start()
    seen: list[Event] = []
    while any(process.is_alive() for process in children):
        seen += pipe.read()
    seen += pipe.read()
    for process in children:
        process.join()
    for number in range(4):
        told = [event for event in seen if isinstance(event, CountEvent) and event.name == f"child-{number}"]
        lost = sum(event.amount for event in seen if isinstance(event, CountEvent) and event.name == LOST)
        assert lost == 0
        assert [event.amount for event in told] == list(range(200))


def test_what_does_not_fit_is_dropped_counted_and_told_later(pipe: EventPipe) -> None:
    told = 0
    while not is_full(pipe):
        count("filler", "x" * 3500)
        told += 1
    count("filler", "x" * 3500)
    count("filler", "x" * 3500)
    first = pipe.read()
    count("after")
    count("after")
    events = first + pipe.read()
    names = [event.name for event in events if isinstance(event, CountEvent)]
    lost = [event.amount for event in events if isinstance(event, CountEvent) and event.name == LOST]
    assert names.count("after") == 2
    assert sum(lost) + names.count("filler") == told + 2
    assert sum(lost) >= 2


def is_full(pipe: EventPipe) -> bool:
    """Whether the pipe has no room for one more line of the kernel's size."""
    line = json.dumps(["CountEvent", {"name": "probe", "label": "y" * 3500, "amount": 0}]).encode() + b"\n"
    try:
        os.write(pipe._writing, line)
    except BlockingIOError:
        return True
    return False


def test_a_line_that_nobody_understands_is_told_in_the_log_and_costs_no_other(
    pipe: EventPipe, caplog: pytest.LogCaptureFixture
) -> None:
    os.write(pipe._writing, b'["Unknown",{}]\nno json\n')
    emit(RUN)
    assert pipe.read() == [RUN]
    assert caplog.text.count("cannot be parsed") == 2


def test_the_event_thread_hands_everything_to_each_consumer_also_when_one_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[Event] = []
    all_there = threading.Event()

    def fails(events: Sequence[Event]) -> None:
        raise RuntimeError("this account is broken")

    def takes(events: Sequence[Event]) -> None:
        taken.extend(events)
        if len(taken) == 2:
            all_there.set()

    event_thread = EventThread([fails, takes])
    event_thread.start()
    try:
        emit(RUN)
        count("something")
        assert all_there.wait(30)
    finally:
        count("last")  # events emitted before the end are handled, too
        event_thread.stop()
    assert taken == [RUN, CountEvent("something"), CountEvent("last")]
    assert "this account is broken" in caplog.text
