"""The address of a worker's HTTP port: parsed from the setting, and published to other processes of the host.

The rule: a worker writes the address at which it listens into its own folder, which is removed with the worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogrid.execution.pool.identity import is_dead, known_owners, runs_of

FILE = "http-address"


@dataclass(frozen=True)
class Address:
    """Host (an IP address or a name) and port; port 0 means any free port."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Address:
        """Parse `host:port`, with an IPv6 address in brackets; `Settings` has checked the form."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL for clients on this host: loopback if the server listens at all addresses."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # read, not bound
        return f"http://{Address(host, self.port)}"


def publish(address: Address, folder: Path) -> None:
    """Write the address into a worker's folder."""
    (folder / FILE).write_text(f"{address}\n")


def published(data_dir: Path) -> Iterator[tuple[str, Address]]:
    """Yield owner id and address of each living worker of a data folder that has a port."""
    for owner in known_owners(data_dir):
        if is_dead(data_dir, owner):
            continue
        try:
            yield owner, Address.of((runs_of(data_dir, owner) / FILE).read_text().strip())
        except (OSError, ValueError):
            continue  # the worker has no port, or has just ended
