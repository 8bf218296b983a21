"""The states of a pooled container, and which state may follow which.

The rule: every other move is a bug and raises IllegalMoveError.

                  ┌──────────────► PREWARMED ◄───► PAUSING
                  │                    │ gets a function
    (new) ─► STARTING                  ▼
                  └────────────────► LEASED ◄──────┐ next run of its function
                                       │ run ended │
                                       ▼           │
                                   CLEANING ────► IDLE ◄───► PAUSING

ENDING may follow every other state: the container is being removed.
A container that is *paused* is in IDLE or PREWARMED: paused is a flag, PAUSING is only the moment in which the pause is made.
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """What a container is doing. The values are shown by `nanogrid pool` and are labels of a metric."""

    STARTING = "starting"
    """Being created and started."""
    PREWARMED = "prewarmed"
    """Ready, without a function yet."""
    LEASED = "leased"
    """Leased to a child, which runs something in it or retains it for its next run (see `retained`)."""
    CLEANING = "cleaning"
    """Being cleaned after a run. It is IDLE within milliseconds."""
    IDLE = "idle"
    """Waits for the next run of its function."""
    PAUSING = "pausing"
    """Being paused, out of IDLE or PREWARMED and back into it. This may take as long as the engine takes."""
    ENDING = "ending"
    """Not used any more. It is removed as soon as the engine can."""


MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.PREWARMED, State.LEASED, State.ENDING}),
    State.PREWARMED: frozenset({State.LEASED, State.PAUSING, State.ENDING}),
    State.LEASED: frozenset({State.CLEANING, State.ENDING}),
    State.CLEANING: frozenset({State.IDLE, State.ENDING}),
    State.IDLE: frozenset({State.LEASED, State.PAUSING, State.ENDING}),
    State.PAUSING: frozenset({State.IDLE, State.PREWARMED, State.ENDING}),
    State.ENDING: frozenset(),
}


class IllegalMoveError(AssertionError):
    """A move that MOVES does not have: a bug in NanoGrid."""


def check(before: State, after: State) -> None:
    """Raise IllegalMoveError unless `after` may follow `before`."""
    if after not in MOVES[before]:
        raise IllegalMoveError(f"a container cannot go from {before.value} to {after.value}")
