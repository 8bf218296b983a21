"""The labels that identify a container's owner, and the id of a data folder.

The rule: a container's labels name its data folder and its owner. The folder contains its id, and a lock file that the
owner keeps locked for as long as it lives.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from nanogrid.errors import ConfigurationError

DATA_LABEL = "nanogrid.data"
OWNER_LABEL = "nanogrid.owner"
BUILD_LABEL = "nanogrid.build"
"""On a container that builds a layer: the layer's id."""


def data_id(data_dir: Path) -> str:
    """The id of a data folder, created if it is missing. Raises ConfigurationError if the folder cannot be written."""
    path = data_dir / "id"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = data_dir / f"id.{uuid.uuid4().hex}"
            fresh.write_text(uuid.uuid4().hex)
            try:
                os.link(fresh, path)  # fails if another process was first: its id counts
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_text()
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {data_dir} cannot be used ({error.strerror}): name another in NANOGRID_DATA_DIR"
        ) from error


def owners_folder(data_dir: Path) -> Path:
    """The folder with the lock files of all owners."""
    return data_dir / "owners"


def owner_lock(data_dir: Path, owner_id: str) -> Path:
    """The file that an owner keeps locked while it lives."""
    return owners_folder(data_dir) / f"{owner_id}.lock"
