"""What a worker's pool holds right now, as its owner tells it to anybody on the host who may read the data folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanogrid.execution.pool.identity import known_owners, runs_of
from nanogrid.execution.pool.protocol import connect

ANSWER_S = 5.0


@dataclass(frozen=True)
class Shown:
    """One container. `state` is a State's value, or `paused` for one that is idle or prewarmed and stands still."""

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


def snapshot(data_dir: Path) -> list[Shown]:
    """The containers of every living worker of this data folder, by worker and number."""
    found: list[Shown] = []
    for owner in known_owners(data_dir):
        try:
            line = connect(runs_of(data_dir, owner) / "owner.sock", ANSWER_S)
        except OSError:
            continue  # a dead worker's, or one that starts or ends right now
        try:
            line.send({"show": True})
            answer = line.receive() or {"pool": []}
        except OSError:
            continue
        finally:
            line.close()
        found += [Shown(worker=owner, **row) for row in answer["pool"]]
    return sorted(found, key=lambda shown: (shown.worker, shown.number))


def as_json(shown: Shown) -> dict[str, Any]:
    """One container as `nanogrid pool --json` prints it."""
    return asdict(shown)
