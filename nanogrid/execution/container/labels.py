"""The labels by which containers are found again, and the id of a data folder.

The rule: a container says whose it is. Its data folder is named by an id that lies in it, its owner by a lock file in that
folder that is locked for as long as the owner lives.
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
    """The id of a data folder, made with it. Raises ConfigurationError where the folder cannot be written."""
    path = data_dir / "id"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = data_dir / f"id.{uuid.uuid4().hex}"
            fresh.write_text(uuid.uuid4().hex)
            try:
                os.link(fresh, path)  # fails where another process was first: its id counts
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_text()
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {data_dir} cannot be used ({error.strerror}): name another by NANOGRID_DATA_DIR"
        ) from error


def owners_folder(data_dir: Path) -> Path:
    """Where the lock files of all owners lie."""
    return data_dir / "owners"


def owner_lock(data_dir: Path, owner_id: str) -> Path:
    """The file that a living owner holds locked."""
    return owners_folder(data_dir) / f"{owner_id}.lock"
