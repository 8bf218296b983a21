"""The states of a pooled container, and which may follow which. Any other move is a bug, and says so.

                  ┌──────────────► PREWARMED ──┐ gets a function
(decided) ─► STARTING                          ▼
                  └────────────────────────► LEASED ◄───────────┐ next run of its function
                                               │ run ended      │
                                               ▼                │
                                            SETTLING ───────► IDLE
ENDING follows every state: removed, or about to be.
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """What a container is doing."""

    STARTING = "starting"
    """Being created and started."""
    PREWARMED = "prewarmed"
    """Ready, without a function yet."""
    LEASED = "leased"
    """In the hands of a child: running something, or at rest until its next run (see `hand`)."""
    SETTLING = "settling"
    """For a moment out of reach: cleaned after a run, or being paused."""
    IDLE = "idle"
    """Waits for the next run of its function."""
    ENDING = "ending"
    """Not used any more, and removed as soon as the engine can."""


MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.PREWARMED, State.LEASED, State.ENDING}),
    State.PREWARMED: frozenset({State.LEASED, State.SETTLING, State.ENDING}),
    State.LEASED: frozenset({State.SETTLING, State.ENDING}),
    State.SETTLING: frozenset({State.IDLE, State.PREWARMED, State.ENDING}),
    State.IDLE: frozenset({State.LEASED, State.SETTLING, State.ENDING}),
    State.ENDING: frozenset(),
}


class IllegalMoveError(AssertionError):
    """A move that the table does not have: a bug of ours."""


def check(before: State, after: State) -> None:
    """Raise IllegalMoveError unless `after` may follow `before`."""
    if after not in MOVES[before]:
        raise IllegalMoveError(f"a container cannot go from {before.value} to {after.value}")
