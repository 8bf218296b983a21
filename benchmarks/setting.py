"""What every row gets: a scratch folder, settings, how often to measure, and the bare interpreter.

The rule: both sides run the same version of Python. The image of the runtime `python` decides which; where the host has
no such interpreter, the row says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import host
from benchmarks.docker_runs import connect, create, options, remove_left
from nanogrid.settings import Settings

IMAGE = "nanogrid/gcc:11"
"""The default image of both runtimes: it has g++ and the Python of its Debian, which many hosts have
too, so that both sides run the same interpreter; `nanogrid/python:3.9` has an older one."""


@dataclass
class Setting:
    """What one row of the benchmark needs. `quick`: the figures are too rough to quote."""

    row: str
    folder: Path
    quick: bool
    notes: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def made(cls, row: str, *, quick: bool) -> Iterator[Setting]:
        """A setting whose folder is removed at the end, as are containers that a failed row left."""
        with tempfile.TemporaryDirectory(prefix=f"nanogrid-bench-{row}-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            folder.chmod(0o755)
            setting = cls(row, folder, quick)
            try:
                yield setting
            finally:
                remove_left(setting.settings())

    @property
    def python_image(self) -> str:
        """The image of the runtime `python`."""
        return self.settings().python_image

    def rounds(self, number: int) -> int:
        """How often to measure: `number`, a tenth of it if `quick`, but at least five times."""
        return max(5, number // 10) if self.quick else number

    def settings(self, **changes: Any) -> Settings:
        """NanoGrid's settings for this row: defaults, with data and images of the benchmark."""
        chosen = Settings()
        own = {
            "data_dir": self.folder / "data",
            "python_image": chosen.python_image or IMAGE,
            "cpp_image": chosen.cpp_image or IMAGE,
            "pull_images": False,
        }
        return Settings(**{**own, **changes})

    @cached_property
    def image_python(self) -> str:
        """Version of the python in the image of the runtime `python`, such as "3.11"."""
        settings = self.settings()
        api = connect(settings)
        command = ["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            made = create(api, options(self.python_image, command, self.folder, settings))
            api.start(made)
            api.wait(made)
            version = api.logs(made).decode().strip()
            api.remove_container(made, force=True)
        finally:
            api.close()
        return version

    @cached_property
    def bare_python(self) -> Path:
        """The bare interpreter of the host, in an environment without packages."""
        python = host.interpreter(self.image_python, self.folder / "bare")
        version = host.version_of(python)
        self.notes.append(f"python {version} on the host, {self.image_python} in the container ({self.python_image})")
        return python

    @property
    def bare_packages(self) -> Path:
        """The folder for packages of the bare interpreter."""
        return next((self.bare_python.parents[1] / "lib").glob("python*")) / "site-packages"
