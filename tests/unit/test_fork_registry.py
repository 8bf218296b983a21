"""What a forked child leaves to its parent, and what it renews."""

from __future__ import annotations

import os
from collections.abc import Callable

from nanogrid.connections import forks


class Part:
    """Notes which hook ran."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def leave_to_parent(self) -> None:
        self.calls.append("left")

    def renew_after_fork(self) -> None:
        self.calls.append("renewed")


class Broken(Part):
    """Fails in each hook."""

    def leave_to_parent(self) -> None:
        raise OSError("broken")

    renew_after_fork = leave_to_parent


def in_child(work: Callable[[], bool]) -> bool:
    """Fork, and return whether `work` is true in the child."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_closes_the_parents_part_once_and_its_own_child_does_not() -> None:
    """By then the descriptor's number may belong to something else."""
    part = Part()
    forks.close_in_child(part)
    assert in_child(lambda: part.calls == ["left"] and in_child(lambda: part.calls == ["left"]))
    assert part.calls == []


def test_a_part_of_each_process_is_renewed_in_every_generation() -> None:
    part = Part()
    forks.renew_in_child(part)
    assert in_child(lambda: part.calls == ["renewed"] and in_child(lambda: part.calls == ["renewed", "renewed"]))
    assert part.calls == []


def test_a_forgotten_part_is_not_closed() -> None:
    """It was closed before the fork."""
    part = Part()
    forks.close_in_child(part)
    forks.forget(part)
    assert in_child(lambda: part.calls == [])


def test_a_part_that_fails_keeps_no_other_open() -> None:
    parts = [Broken(), Part(), Broken(), Part()]
    for part in parts:
        forks.close_in_child(part)
        forks.renew_in_child(part)
    assert in_child(lambda: parts[1].calls == parts[3].calls == ["renewed", "left"])
