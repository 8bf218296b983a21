"""Who owns what on a Docker host: data folders, and the workers that use them.

The rule: an owner is dead exactly when its lock file can be locked, so an owner takes its lock before it creates anything else.
The kernel releases a lock when the process that holds it ends, however it ends. Containers carry the id of their data folder.
A worker judges only owners of its own folder, because it cannot see the locks of any others.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from nanogrid.execution.container.labels import DATA_LABEL, OWNER_LABEL, data_id, owner_lock, owners_folder

NUMBER_LABEL = "nanogrid.number"


class OwnerIdentity:
    """A living owner. It holds its lock from construction until `close`, or until the process ends."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.data_id = data_id(data_dir)
        self.id = uuid.uuid4().hex[:16]
        owners_folder(data_dir).mkdir(exist_ok=True)
        # Before the folder: every reaper takes a folder without a lock for a dead owner's.
        self._lock = _lock_new(owner_lock(data_dir, self.id))
        try:
            self._make_folder()
        except BaseException:
            self.close()
            raise

    @property
    def runs(self) -> Path:
        """The folder that holds this owner's slots."""
        return runs_of(self.data_dir, self.id)

    def _make_folder(self) -> None:
        """Create `runs` for this user alone. The slots inside are open; the engine mounts them as root."""
        self.runs.parent.mkdir(mode=0o700, exist_ok=True)
        self.runs.parent.chmod(0o700)  # older versions created it open to other users
        self.runs.mkdir(mode=0o700)

    @property
    def labels(self) -> dict[str, str]:
        """The labels of this owner's containers."""
        return {DATA_LABEL: self.data_id, OWNER_LABEL: self.id}

    def detach(self) -> None:
        """In a forked child: close the parent's lock file, so that the lock ends with the parent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def close(self) -> None:
        """Release the lock: from now on this owner counts as dead."""
        if self._lock >= 0:
            owner_lock(self.data_dir, self.id).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def runs_of(data_dir: Path, owner_id: str) -> Path:
    """The folder of an owner's slots."""
    return data_dir / "runs" / owner_id


def known_owners(data_dir: Path) -> Iterator[str]:
    """Ids of all owners, living or dead, that have a lock file or slots."""
    locks = {path.stem for path in owners_folder(data_dir).glob("*.lock")}
    folders = {path.name for path in (data_dir / "runs").glob("*")}
    yield from sorted(locks | folders)


def is_dead(data_dir: Path, owner_id: str) -> bool:
    """Whether no process holds the owner's lock. An owner without a lock file is dead."""
    try:
        fd = os.open(owner_lock(data_dir, owner_id), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        # Shared: several processes may check at the same time, and none of them may look like the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def forget(data_dir: Path, owner_id: str) -> None:
    """Delete a dead owner's lock file."""
    owner_lock(data_dir, owner_id).unlink(missing_ok=True)


def _lock_new(path: Path) -> int:
    """Lock a file under a temporary name, then rename it, so that no other process ever sees it unlocked.

    A forked child shares the descriptor and the lock until it calls `OwnerIdentity.detach`.
    """
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fresh.rename(path)
    return fd
