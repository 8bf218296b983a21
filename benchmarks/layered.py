"""Functions with layers: layers from requirements.txt or build.sh are built once, before the measurement."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.programs import Program
from nanogrid.execution.code import Code
from nanogrid.execution.container.engine import Engine
from nanogrid.execution.layers import LayeredCode, LayerStore
from nanogrid.settings import Settings


@contextmanager
def built(settings: Settings, program: Program, folder: Path, runtime: str) -> Iterator[LayeredCode]:
    """The function's prepared code, locked until the block ends."""
    tree = program.write(folder / "code" / uuid.uuid4().hex)
    content = repr(sorted(program.files.items())).encode()
    code = Code(tree, hashlib.sha256(content).hexdigest(), len(content), 0.0, 0.0, cached=True)
    engine = Engine(settings)
    try:
        with LayerStore(settings, engine).prepare(code, settings.runtime_table[runtime]) as prepared:
            yield prepared
    finally:
        engine.close()
