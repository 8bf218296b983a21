"""A Redis primary with a replica, and one address that leads to the current primary: for failovers that lose writes.

    with redis_pair(folder) as pair:
        pair.sever()        # from now on the replica gets nothing
        ...                 # what is written now is lost
        pair.fail_over()    # the primary is killed, the replica replaces it, the address leads there

The rule: real servers, real replication; the replica reaches its primary through a proxy that can be cut.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.support.redis_proxy import RedisProxy
from tests.support.services import Service, free_port, redis_service, running, wait_until

log = logging.getLogger(__name__)


class RedisPair:
    """The pair. `url` leads to the primary."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.primary = self._start("first")
        self._replication = stack.enter_context(RedisProxy(self.primary.port))
        self.replica = self._start("second", self._replication.port)
        self.address = stack.enter_context(RedisProxy(self.primary.port))
        self.await_replica()

    @property
    def url(self) -> str:
        """Database 0 of the current primary."""
        return self.address.url

    def on(self, server: Service) -> redis.Redis:
        """A client of one of the servers, not through the address."""
        client = redis.Redis(port=server.port, decode_responses=True)
        self._stack.callback(client.close)
        return client

    def sever(self) -> None:
        """Cut the replication."""
        self._replication.lead_to(free_port())
        wait_until(lambda: self._replicas() == [], "the primary has lost its replica")

    def mend(self) -> None:
        """Restore the replication."""
        self._replication.lead_to(self.primary.port)

    def fail_over(self, *, add_replica: bool = False, keep_old: bool = False) -> None:
        """The replica becomes the primary, without the writes it missed. `keep_old`: the old primary keeps running, as a replica, and
        connections to it stay open."""
        successor = self.on(self.replica)
        successor.replicaof("NO", "ONE")
        if keep_old:
            self.on(self.primary).replicaof("127.0.0.1", str(self.replica.port))
        else:
            self.primary.kill()
        self.primary, self.replica = self.replica, self.primary
        self.address.lead_to(self.primary.port, cut=not keep_old)
        if add_replica:
            self.replica = self._start("third", self.primary.port)
            self.await_replica()

    def await_replica(self) -> None:
        """Wait until the primary has a replica that answers."""
        wait_until(lambda: [each for each in self._replicas() if each["state"] == "online"], "the replica is there")

    def await_replicated(self) -> None:
        """Wait until the replica has all writes."""
        with redis.Redis(port=self.primary.port) as client:
            client.set("test:replicated", 1)
            assert client.execute_command("WAIT", 1, 10_000) == 1

    def _replicas(self) -> list[dict[str, Any]]:
        with redis.Redis(port=self.primary.port) as client:
            info: dict[str, Any] = client.info("replication")
        return [info[f"slave{number}"] for number in range(info["connected_slaves"])]

    def _start(self, name: str, replica_of: int | None = None) -> Service:
        folder = self._folder / name
        folder.mkdir()
        service = redis_service(folder)
        service.argv += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        if replica_of is not None:
            service.argv += ["--replicaof", "127.0.0.1", str(replica_of)]
        return self._stack.enter_context(running(service))


@contextmanager
def redis_pair(folder: Path) -> Iterator[RedisPair]:
    """A pair for the length of a `with` block."""
    with ExitStack() as stack:
        yield RedisPair(folder, stack)
