"""What processes of a worker tell, and who takes it."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence

import pytest

from nanogrid.telemetry.event_thread import Ledger
from nanogrid.telemetry.events import LOST, Event, Happened, Reader, RequestEnded, RunObserved, happened, tell

RUN = RunObserved("f", "abc", 1.5, "SUCCEEDED", 2.5, None, 4096, 128, 256, killed_for_memory=False)


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def test_what_is_told_comes_out_as_it_was(reader: Reader) -> None:
    ended = RequestEnded("f", "python", "FAILED", "warm", {"run": 1.25, "store": None}, 4096, 128, 2)
    tell(RUN)
    tell(ended)
    happened("retries", "S3", 3)
    assert reader.read() == [RUN, ended, Happened("retries", "S3", 3)]
    assert reader.read() == []


def test_outside_of_a_worker_nothing_is_told() -> None:
    tell(RUN)  # there is no pipe: neither an error nor a wait


def test_events_of_several_processes_never_mix(reader: Reader) -> None:
    context = multiprocessing.get_context("fork")

    def child(number: int) -> None:
        for count in range(200):
            happened(f"child-{number}", "x" * 300, count)

    children = [context.Process(target=child, args=(number,)) for number in range(4)]
    for process in children:
        process.start()
    seen: list[Event] = []
    while any(process.is_alive() for process in children):
        seen += reader.read()
    seen += reader.read()
    for process in children:
        process.join()
    for number in range(4):
        told = [event for event in seen if isinstance(event, Happened) and event.name == f"child-{number}"]
        lost = sum(event.amount for event in seen if isinstance(event, Happened) and event.name == LOST)
        assert lost == 0
        assert [event.amount for event in told] == list(range(200))


def test_what_does_not_fit_is_dropped_counted_and_told_later(reader: Reader) -> None:
    told = 0
    while not reader_is_full(reader):
        happened("filler", "x" * 3500)
        told += 1
    happened("filler", "x" * 3500)
    happened("filler", "x" * 3500)
    first = reader.read()
    happened("after")
    happened("after")
    events = first + reader.read()
    names = [event.name for event in events if isinstance(event, Happened)]
    lost = [event.amount for event in events if isinstance(event, Happened) and event.name == LOST]
    assert names.count("after") == 2
    assert sum(lost) + names.count("filler") == told + 2
    assert sum(lost) >= 2


def reader_is_full(reader: Reader) -> bool:
    """Whether one more line of the kernel's size finds no room."""
    line = json.dumps(["Happened", {"name": "probe", "label": "y" * 3500, "amount": 0}]).encode() + b"\n"
    try:
        os.write(reader._writing, line)
    except BlockingIOError:
        return True
    return False


def test_a_line_that_nobody_understands_is_told_in_the_log_and_costs_no_other(
    reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    os.write(reader._writing, b'["Unknown",{}]\nno json\n')
    tell(RUN)
    assert reader.read() == [RUN]
    assert caplog.text.count("cannot be understood") == 2


def test_a_ledger_hands_everything_to_each_taker_also_when_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[Event] = []
    all_there = threading.Event()

    def fails(events: Sequence[Event]) -> None:
        raise RuntimeError("this account is broken")

    def takes(events: Sequence[Event]) -> None:
        taken.extend(events)
        if len(taken) == 2:
            all_there.set()

    ledger = Ledger([fails, takes])
    ledger.start()
    try:
        tell(RUN)
        happened("something")
        assert all_there.wait(30)
    finally:
        happened("last")  # what is told until the end is handed on, too
        ledger.stop()
    assert taken == [RUN, Happened("something"), Happened("last")]
    assert "this account is broken" in caplog.text
