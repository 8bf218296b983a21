"""A child's connection to the owner, and the container that the child retains on this connection between two runs.

Runs in: the children of the worker.

The rule: the child uses a retained container only after it has taken the token, and only after the runner has reported that it is
clean. If anything is wrong with the container, the request goes to the owner.
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
    PAGE,
    RUNNER,
    SPARE,
    TOKEN,
    LeasedContainer,
    LeaseRequest,
    Line,
    connect,
    error_from_json,
)
from nanogrid.execution.pool.retained import SharedPage, Token
from nanogrid.result import StartKind

log = logging.getLogger(__name__)

CLEAN_S = 1.0
"""How long a child waits for its retained container to be clean, which takes milliseconds. Then it asks the owner for another."""


class ChildContainer:
    """One leased container with a runner, as the child sees it: connection, accounts, and the token if it may be retained."""

    def __init__(self, terms: tuple[Any, ...], leased: LeasedContainer, link: Link, token: Token | None) -> None:
        self.terms = terms
        self.leased = leased
        self.link = link
        self.token = token
        self.cgroup = OpenCgroup(*vars(leased.cgroup).values())

    def as_warm(self) -> LeasedContainer:
        """The container as the next run leases it."""
        if self.leased.start is not StartKind.WARM:
            self.leased = replace(self.leased, start=StartKind.WARM)
        return self.leased

    def close(self) -> None:
        """Close the child's descriptors. The owner's own ones stay open."""
        self.link.close()
        self.cgroup.close()


class Connection:
    """Carries one lease after another. Used by one thread at a time, of the process that made it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.pid = os.getpid()
        self.retained: ChildContainer | None = None
        self._page_descriptor = SharedPage.new()
        self._page = SharedPage(self._page_descriptor)

    @classmethod
    def to_owner(cls, address: Path) -> Connection:
        """A new connection. Raises PoolExhaustedError if no owner listens at this address."""
        try:
            return cls(connect(address))
        except OSError as error:
            raise PoolExhaustedError(f"the owner of this worker's containers does not answer: {error}") from error

    def ask(self, request: LeaseRequest) -> LeasedContainer | None:
        """Ask the owner for a container. None if the owner has hung up. Raises the error that the owner answers with."""
        message: dict[str, Any] = {"lease": request.to_json()}
        descriptors = []
        if self._page_descriptor >= 0:
            message["with"], descriptors = [PAGE], [self._page_descriptor]
        self._drop_retained()
        try:
            self.line.send(message, descriptors)
        except OSError:
            return None
        answer = self.line.receive()
        if answer is None:
            return None
        self._close_page_descriptor()
        self._sent = answer.get("with", [])
        return LeasedContainer.from_json(checked(answer)["container"])

    def child_container(self, request: LeaseRequest, leased: LeasedContainer) -> ChildContainer:
        """The leased container with the descriptors that came with the answer. It must have a runner."""
        descriptors = {name: self.line.take_descriptor() for name in self._sent}
        link = Link.of(descriptors[RUNNER], descriptors[SPARE])
        token = Token(descriptors[TOKEN]) if TOKEN in descriptors else None
        return ChildContainer(request.terms, leased, link, token)

    # -- the retained container

    def can_serve(self, request: LeaseRequest) -> bool:
        """Whether the retained container is for the same function, code, image and limits as the request."""
        return self.retained is not None and self.retained.terms == request.terms

    def reuse_retained(self, request: LeaseRequest) -> ChildContainer | None:
        """The retained container for another run. None if the child must ask the owner."""
        container = self.retained
        if container is None or not self.can_serve(request) or container.token is None or not container.token.take():
            return None
        self.retained = None
        self._page.begin(request.request_id)
        end = self._check(container, min(CLEAN_S, request.wait_s))
        if end is None:
            return container
        container.close()
        with suppress(OSError):  # if the owner is gone, the next request finds out
            self.line.send({"end": end})
        return None

    def retain(self, container: ChildContainer) -> None:
        """Retain a container whose run has ended, or give it back if it has no token or the owner wants it back.

        Raises OSError if the container must be given back and the owner is gone.
        """
        self._page.end()
        if container.token is not None:
            self.retained = container
            container.token.put()
            # The owner sets `wanted_back` before it tries the token: one of the two sees what the other has done.
            if not self._page.wanted_back or not container.token.take():
                return
            self.retained = None
        self.line.send({"end": "keep"})

    def _check(self, container: ChildContainer, wait_s: float) -> str | None:
        """The `end` message for a container that cannot be used now; None if it can be used."""
        try:
            message = container.link.receive(wait_s)
        except ContainerLostError:
            message = Unfit("gone", "it ended while it was not in use")
        if message is None:
            return "keep"
        if isinstance(message, Ready) and not container.link.is_alive():
            message = Unfit("gone", "it ended while it was not in use")
        if not isinstance(message, Ready):
            log.warning("container %s is not used again: its runner sent %s", container.leased.name, message)
            return "done"
        return "done" if container.cgroup.is_frozen() and not container.cgroup.can_freeze() else None

    def _drop_retained(self) -> None:
        """Close the retained container: the owner has taken it back, or does so with the next request."""
        if self.retained is not None:
            self.retained.close()
            self.retained = None

    def _close_page_descriptor(self) -> None:
        if self._page_descriptor >= 0:
            os.close(self._page_descriptor)
            self._page_descriptor = -1

    def close(self) -> None:
        """Close the connection, which ends the lease. The owner takes a container at rest back."""
        self._drop_retained()
        self._close_page_descriptor()
        self.line.close()


def checked(message: dict[str, Any] | None) -> dict[str, Any]:
    """The owner's answer. Raises PoolExhaustedError if there is none, or the error that the answer holds."""
    if message is None:
        raise PoolExhaustedError("the owner of this worker's containers hung up")
    if "error" in message:
        error: NanoGridError = error_from_json(message["error"])
        raise error
    return message
