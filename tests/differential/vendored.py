"""Code with packages in it, as `pip install -t .` makes it, and how it is run and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import package_index, vendored
from tests.differential.compare import describe
from tests.support.rig import PYTHON_IMAGE
from tests.support.runner_box import Box, Run, box

RUNS = 3
"""The first one imports everything itself. The second one has learned from it, and the third follows at once."""
MEMORY_MB = 768


@contextmanager
def container() -> Iterator[Box]:
    """A container that several programs share, each as the only function it knows."""
    with TemporaryDirectory() as folder, box(Path(folder), PYTHON_IMAGE, memory_mb=MEMORY_MB) as here:
        yield here


@contextmanager
def code(files: Mapping[str, str], pins: Sequence[str]) -> Iterator[Path]:
    """These files and packages, read-only as in the code cache, without bytecode."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name) / "code"
        folder.mkdir()
        if pins:
            package_index.fetch(pins, vendored.PYTHON, vendored.WHEELS)
            package_index.install_into(pins, vendored.PYTHON, vendored.WHEELS, folder)
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder


def runs(here: Box, folder: Path, number: int = RUNS) -> list[Run]:
    """The first run and those right after it."""
    here.replace(folder)
    return [here.run() for _ in range(number)]


def difference(here: Box, folder: Path) -> str:
    """What a run shows that a new interpreter with the same code does not, and the other way round."""
    found = runs(here, folder)
    bare = describe(here.run(in_process=False))
    return "\n".join(
        f"run {number} ({run.how}) is not like a new interpreter's\n  {describe(run)}\n  {bare}"
        for number, run in enumerate(found)
        if describe(run) != bare
    )
