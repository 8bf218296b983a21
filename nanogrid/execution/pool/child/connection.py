"""A child's connection to the owner, and the container that the child keeps in hand on it between two runs.

The rule: what is kept is the child's only with its token taken, and is used only when the runner has said that it is clean.
Whatever is wrong with it, the request goes to the owner, who knows what to do.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanogrid.errors import ContainerLostError, NanoGridError, PoolExhaustedError
from nanogrid.execution.container.cgroup import OpenCgroup
from nanogrid.execution.container.link import Link, Ready, Unfit
from nanogrid.execution.pool.protocol import (
    RUNNER,
    SLATE,
    SPARE,
    TOKEN,
    LeasedContainer,
    LeaseRequest,
    Line,
    connect,
    error_from_json,
)
from nanogrid.execution.pool.retained import Slate, Token
from nanogrid.result import StartKind

log = logging.getLogger(__name__)

CLEAN_S = 1.0
"""How long a child waits for what it has in hand to be clean. It takes milliseconds; then the owner is asked for another."""


class Grip:
    """One leased container with a runner, as the child holds it: its connection, its accounts, and the token where it has one."""

    def __init__(self, terms: tuple[Any, ...], leased: LeasedContainer, link: Link, token: Token | None) -> None:
        self.terms = terms
        self.leased = leased
        self.link = link
        self.token = token
        self.cgroup = OpenCgroup(*vars(leased.cgroup).values())

    def as_warm(self) -> LeasedContainer:
        """What it is for the next run."""
        if self.leased.start is not StartKind.WARM:
            self.leased = replace(self.leased, start=StartKind.WARM)
        return self.leased

    def close(self) -> None:
        """Let go of it. The owner's own ends stay open."""
        self.link.close()
        self.cgroup.close()


class Connection:
    """One lease after the other. Used by one thread at a time, of the process that made it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.pid = os.getpid()
        self.kept: Grip | None = None
        self._slate_descriptor = Slate.new()
        self._slate = Slate(self._slate_descriptor)

    @classmethod
    def to_owner(cls, address: Path) -> Connection:
        """A new one. Raises PoolExhaustedError where nobody listens."""
        try:
            return cls(connect(address))
        except OSError as error:
            raise PoolExhaustedError(f"the owner of this worker's containers does not answer: {error}") from error

    def ask(self, wanted: LeaseRequest) -> LeasedContainer | None:
        """Ask the owner for a container. None where it has hung up; raises the error that it gives as its answer."""
        message: dict[str, Any] = {"lease": wanted.to_json()}
        descriptors = []
        if self._slate_descriptor >= 0:
            message["with"], descriptors = [SLATE], [self._slate_descriptor]
        self._drop()
        try:
            self.line.send(message, descriptors)
        except OSError:
            return None
        answer = self.line.receive()
        if answer is None:
            return None
        self._close_slate()
        self._sent = answer.get("with", [])
        return LeasedContainer.from_json(understood(answer)["container"])

    def grip(self, wanted: LeaseRequest, leased: LeasedContainer) -> Grip:
        """Hold what came with the answer: of a container that has a runner."""
        found = {name: self.line.take_descriptor() for name in self._sent}
        link = Link.of(found[RUNNER], found[SPARE])
        return Grip(wanted.terms, leased, link, Token(found[TOKEN]) if TOKEN in found else None)

    # -- in hand

    def serves(self, wanted: LeaseRequest) -> bool:
        """Whether what is in hand is of the kind that is wanted."""
        return self.kept is not None and self.kept.terms == wanted.terms

    def pick_up(self, wanted: LeaseRequest) -> Grip | None:
        """What is in hand, for another run. None where the owner has to be asked."""
        grip = self.kept
        if grip is None or not self.serves(wanted) or grip.token is None or not grip.token.take():
            return None
        self.kept = None
        self._slate.begin(wanted.request_id)
        word = self._look_at(grip, min(CLEAN_S, wanted.wait_s))
        if word is None:
            return grip
        grip.close()
        with suppress(OSError):  # an owner that is gone is found out by the next question
            self.line.send({"end": word})
        return None

    def put_down(self, grip: Grip) -> None:
        """The run is over, and what the container holds may serve the next one: keep it, or give it back.

        Raises OSError where it has to be given back and the owner is gone.
        """
        self._slate.end()
        if grip.token is not None:
            self.kept = grip
            grip.token.put()
            # Whoever wants it has said so before looking for the token: one of the two sees what the other has done.
            if not self._slate.wanted or not grip.token.take():
                return
            self.kept = None
        self.line.send({"end": "keep"})

    def _look_at(self, grip: Grip, wait_s: float) -> str | None:
        """What to tell the owner of a container that cannot be used now; None where it can."""
        try:
            message = grip.link.receive(wait_s)
        except ContainerLostError:
            message = Unfit("gone", "it ended while it was not in use")
        if message is None:
            return "keep"
        if isinstance(message, Ready) and not grip.link.is_alive():
            message = Unfit("gone", "it ended while it was not in use")
        if not isinstance(message, Ready):
            log.warning("container %s is not used again: it said %s", grip.leased.name, message)
            return "done"
        return "done" if grip.cgroup.is_frozen() and not grip.cgroup.can_freeze() else None

    def _drop(self) -> None:
        """Do without what is in hand: the owner has it, or takes it with the next question."""
        if self.kept is not None:
            self.kept.close()
            self.kept = None

    def _close_slate(self) -> None:
        if self._slate_descriptor >= 0:
            os.close(self._slate_descriptor)
            self._slate_descriptor = -1

    def close(self) -> None:
        """End the connection, and with it the lease; what rests in hand goes back."""
        self._drop()
        self._close_slate()
        self.line.close()


def understood(message: dict[str, Any] | None) -> dict[str, Any]:
    """The owner's answer. Raises the error that it is."""
    if message is None:
        raise PoolExhaustedError("the owner of this worker's containers hung up")
    if "error" in message:
        error: NanoGridError = error_from_json(message["error"])
        raise error
    return message
