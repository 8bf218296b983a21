"""Where the HTTP port of a worker is: read from the setting, and found by other processes of the host.

The rule: a worker writes where it really listens into its own folder, which goes with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogrid.execution.pool.identity import is_dead, known_owners, runs_of

FILE = "http-address"


@dataclass(frozen=True)
class Address:
    """Host (an IP address or a name) and port; port 0 asks for any that is free."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Address:
        """Read `host:port`, with an IPv6 address in brackets; `Settings` has checked the form."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where to ask on this host: an address that stands for all is reached by loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # read, not bound
        return f"http://{Address(host, self.port)}"


def publish(address: Address, folder: Path) -> None:
    """Write the address into the folder of a worker."""
    (folder / FILE).write_text(f"{address}\n")


def published(data_dir: Path) -> Iterator[tuple[str, Address]]:
    """Owner id and address of the living workers of a data folder that have a port."""
    for owner in known_owners(data_dir):
        if is_dead(data_dir, owner):
            continue
        try:
            yield owner, Address.of((runs_of(data_dir, owner) / FILE).read_text().strip())
        except (OSError, ValueError):
            continue  # it has no port, or has just ended
