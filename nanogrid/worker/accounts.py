"""The bootstep that takes what the processes of a worker tell, and has it accounted for."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker import components

from nanogrid.ledger import Ledger


class Accounts(bootsteps.StartStopStep):
    """Listens before the children are there, and until they are gone."""

    requires = (components.Hub,)
    ledger: Ledger | None = None
    """The ledger of this process, where it has one; a child finds its parent's."""

    def start(self, worker: Any) -> None:
        """Open the pipe that children tell through."""
        Accounts.ledger = Ledger(())
        Accounts.ledger.start()

    def stop(self, worker: Any) -> None:
        """Account for what was told, and end."""
        if Accounts.ledger is not None:
            Accounts.ledger.stop()
            Accounts.ledger = None

    terminate = stop
