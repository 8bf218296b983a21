"""The programs of a warm container, as files that can be mounted.

They are copied once per worker, because the engine's host may not see this package (for example if the worker is in a container).
"""

from __future__ import annotations

import shutil
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"
COMMANDS = "bin"
"""The folder of the programs that functions call by name."""

OLDEST_PYTHON = (3, 9)
"""The oldest Python of an image that can run the programs."""


def lay_out_programs(folder: Path) -> None:
    """Copy the programs into `folder`, read-only. Commands are executable, however the package was installed."""
    shutil.copytree(INSIDE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() or path.parent.name == COMMANDS else 0o444)
