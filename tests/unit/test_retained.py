"""The token and the shared page: which side has a container that is at rest between two runs."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nanogrid.execution.pool.retained import Retention, SharedPage, Token


def shared_page() -> SharedPage:
    """A page that only one side maps."""
    descriptor = SharedPage.new()
    try:
        return SharedPage(descriptor)
    finally:
        os.close(descriptor)


def test_a_new_token_is_not_free() -> None:
    """A lease starts with the child's own run: nobody can take the container during that run."""
    token = Token()
    assert not token.is_free()
    assert not token.take()


def test_a_free_token_is_taken_once() -> None:
    """It can be freed again."""
    token = Token()
    for _ in range(3):
        token.put()
        assert token.is_free()
        assert token.take()
        assert not token.is_free()
        assert not token.take()


def test_of_many_threads_one_takes_it() -> None:
    """However many try at once."""
    token, start = Token(), threading.Barrier(8)

    def try_often() -> int:
        start.wait()
        return sum(token.take() for _ in range(100))

    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            token.put()
            assert sum(done.result() for done in [threads.submit(try_often) for _ in range(8)]) == 1


def test_of_two_processes_one_takes_it() -> None:
    """The owner and the child are two processes that share nothing else."""
    ours = Token()
    ready, go = os.pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)  # end of file starts all children at once
            os._exit(sum(Token(os.dup(ours.fileno())).take() for _ in range(100)))
        children.append(pid)
    os.close(ready)
    ours.put()
    os.close(go)
    taken = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert sorted(taken) == [0, 0, 0, 1]


def test_a_token_of_an_earlier_lease_is_useless() -> None:
    """Each lease has its own token."""
    before, now = Token(), Token()
    now.put()
    assert not before.take()
    assert now.take()


def test_a_token_is_closed_with_its_last_reference() -> None:
    """No sooner: a thread that polls the token must not poll a descriptor number that has been reused."""
    token = Token()
    descriptor, is_free = token.fileno(), token.is_free
    del token
    assert is_free() is False
    del is_free
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_both_sides_see_one_page() -> None:
    """The owner's wish, the current request, the number of runs and the end of the last one need no message."""
    descriptor = SharedPage.new()
    owner, child = SharedPage(descriptor), SharedPage(descriptor)
    os.close(descriptor)
    child.begin("request-1")
    child.end()
    child.begin("grüße" * 100)
    assert (owner.runs, owner.request_id) == (1, ("grüße" * 100).encode()[:254].decode("utf-8", "replace"))
    assert 0 < owner.since <= time.monotonic()
    owner.wanted_back = True
    assert child.wanted_back
    assert (owner.runs, child.runs) == (1, 1)
    owner.clear()
    assert (child.wanted_back, child.runs, child.since) == (False, 0, 0.0)


def test_a_retention_knows_since_when_its_container_rests() -> None:
    """During a run it does not rest."""
    retention = Retention(Token(), shared_page())
    assert retention.resting_since() is None
    retention.page.end()
    retention.token.put()
    assert retention.resting_since() == retention.page.since
    assert retention.token.take()
    assert retention.resting_since() is None
