"""Where a local stack keeps its state: one folder, one JSON file, one lock.

The rule: a process that changes the stack holds the lock, and the state file is only replaced as a whole. Reading needs
no lock.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from nanogrid.errors import ConfigurationError
from nanogrid.local.processes import ProcessRecord

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "NANOGRID_LOCAL_DIR"


def default_folder() -> Path:
    """`$NANOGRID_LOCAL_DIR`, else `nanogrid/local` in the user's state folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "nanogrid" / "local"


class Ports(BaseModel):
    """The stack's ports on loopback. Redis and SQS have uncommon ones: the usual ports may be in use."""

    model_config = ConfigDict(frozen=True)

    sqs: int = 9324
    redis: int = 6390
    flower: int = 5555


class StackState(BaseModel):
    """The stored state of a stack that was started."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)

    ports: Ports = Field(default_factory=Ports)
    environment: dict[str, str] = Field(default_factory=dict)
    processes: dict[str, ProcessRecord] = Field(default_factory=dict)


class StackFolder:
    """The files of one stack. Two folders are two independent stacks."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_folder()).expanduser().resolve()

    @property
    def state_path(self) -> Path:
        """The JSON state file."""
        return self.root / "stack.json"

    @property
    def worker_data(self) -> Path:
        """The worker's `NANOGRID_DATA_DIR`."""
        return self.root / "worker"

    @property
    def redis_data(self) -> Path:
        """Redis' append-only file."""
        return self.root / "redis"

    def log_path(self, part: str) -> Path:
        """The log of one process."""
        return self.root / "logs" / f"{part}.log"

    def create(self) -> None:
        """Create the folder, for its owner only: Redis' data contains what functions printed."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self.worker_data, self.redis_data, self.root / "logs"):
                path.mkdir(exist_ok=True)
        except OSError as refused:
            raise ConfigurationError(
                f"{refused.filename} cannot be created ({refused.strerror}): choose a folder with --data-dir"
            ) from refused

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Block every other `up` and `down` of this stack. `on_wait` is called if one of them is running now.

        The kernel releases the lock when its holder dies.
        """
        with (self.root / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> StackState | None:
        """The stored state, or None. An unreadable state counts as none: the stack's processes are found anyway."""
        try:
            return StackState.model_validate_json(self.state_path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as unusable:
            log.warning("%s cannot be used and is ignored: %s", self.state_path, unusable)
            return None

    def write(self, state: StackState) -> None:
        """Replace the state file. A crash leaves the old file or the new one, never a part."""
        fresh = self.state_path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(state.model_dump(mode="json", by_alias=True), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.state_path)

    def forget(self) -> None:
        """Remove the state file, once nothing of the stack runs."""
        self.state_path.unlink(missing_ok=True)
