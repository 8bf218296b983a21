"""The token and the slate: who has a container that rests between two runs."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nanogrid.execution.pool.retained import Hand, Slate, Token


def slate() -> Slate:
    """Seen from one side only."""
    descriptor = Slate.new()
    try:
        return Slate(descriptor)
    finally:
        os.close(descriptor)


def test_there_is_no_token_before_a_run_is_over() -> None:
    """A lease begins with the child's own run: nobody can take the container meanwhile."""
    token = Token()
    assert not token.lies()
    assert not token.take()


def test_a_token_that_lies_there_is_taken_once() -> None:
    """And can be put down again."""
    token = Token()
    for _ in range(3):
        token.put()
        assert token.lies()
        assert token.take()
        assert not token.lies()
        assert not token.take()


def test_of_many_threads_one_takes_it() -> None:
    """However many reach for it at once."""
    token, start = Token(), threading.Barrier(8)

    def reach() -> int:
        start.wait()
        return sum(token.take() for _ in range(100))

    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            token.put()
            assert sum(done.result() for done in [threads.submit(reach) for _ in range(8)]) == 1


def test_of_two_processes_one_takes_it() -> None:
    """The owner and the child are two processes that share nothing else."""
    ours = Token()
    ready, go = os.pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)  # its end starts all at once
            os._exit(sum(Token(os.dup(ours.fileno())).take() for _ in range(100)))
        children.append(pid)
    os.close(ready)
    ours.put()
    os.close(go)
    taken = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert sorted(taken) == [0, 0, 0, 1]


def test_a_token_of_an_earlier_lease_is_of_no_use() -> None:
    """Each lease has a token of its own."""
    before, now = Token(), Token()
    now.put()
    assert not before.take()
    assert now.take()


def test_a_token_is_closed_when_nobody_holds_it() -> None:
    """No sooner: a thread that looks at it must not look at another one's descriptor."""
    token = Token()
    descriptor, look = token.fileno(), token.lies
    del token
    assert look() is False
    del look
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_both_sides_see_one_slate() -> None:
    """What the owner wants, and whose run it is, how many there were and until when, goes without a message."""
    descriptor = Slate.new()
    owner, child = Slate(descriptor), Slate(descriptor)
    os.close(descriptor)
    child.begin("request-1")
    child.end()
    child.begin("grüße" * 100)
    assert (owner.runs, owner.request_id) == (1, ("grüße" * 100).encode()[:254].decode("utf-8", "replace"))
    assert 0 < owner.since <= time.monotonic()
    owner.wanted = True
    assert child.wanted
    assert (owner.runs, child.runs) == (1, 1)
    owner.clear()
    assert (child.wanted, child.runs, child.since) == (False, 0, 0.0)


def test_a_hand_tells_since_when_it_holds_something_at_rest() -> None:
    """Nothing while a run is under way."""
    hand = Hand(Token(), slate())
    assert hand.resting_since() is None
    hand.slate.end()
    hand.token.put()
    assert hand.resting_since() == hand.slate.since
    assert hand.token.take()
    assert hand.resting_since() is None
