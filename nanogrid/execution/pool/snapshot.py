"""The containers of all workers of a data folder, as their owners report them to any user who may read that folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanogrid.execution.pool.identity import known_owners, runs_of
from nanogrid.execution.pool.protocol import connect

ANSWER_S = 5.0


@dataclass(frozen=True)
class ContainerSnapshot:
    """One container at one moment. `state` is a State's value, or `paused` for an idle or prewarmed container that is paused."""

    worker: str
    number: int
    name: str
    container_id: str
    image: str
    state: str
    function_id: str | None
    request_id: str | None
    age_s: float
    in_state_s: float
    runs: int
    memory_limit_mb: int
    memory_bytes: int | None


def snapshot(data_dir: Path) -> list[ContainerSnapshot]:
    """The containers of every living worker of this data folder, by worker and number."""
    containers: list[ContainerSnapshot] = []
    for owner in known_owners(data_dir):
        try:
            line = connect(runs_of(data_dir, owner) / "owner.sock", ANSWER_S)
        except OSError:
            continue  # the worker is dead, or starts or stops at this moment
        try:
            line.send({"show": True})
            answer = line.receive() or {"pool": []}
        except OSError:
            continue
        finally:
            line.close()
        containers += [ContainerSnapshot(worker=owner, **row) for row in answer["pool"]]
    return sorted(containers, key=lambda container: (container.worker, container.number))


def as_json(container: ContainerSnapshot) -> dict[str, Any]:
    """One container as `nanogrid pool --json` prints it."""
    return asdict(container)
