"""The function's own modules, compiled once for all runs in this container.

The rule: a module is always what its source says. The bytecode comes from a one-shot child that runs no code of the function. It is used only if
the source that a run finds is the very one that was compiled, and is written beside it as Python would do. The first process keeps
the bytecode in a memory file and never reads it.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH116, PTH123, S302
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import _warnings
import marshal
import os
import sys

from nanogrid_warm import import_report, paths

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Callable, Iterable
    from typing import Any

FROZEN = "<frozen importlib._bootstrap_external>"
LIMIT_BYTES = 32 << 20
PATHS_LIMIT = 1000


class Bytecode:
    """The modules to compile, and in a spare their bytecode."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.paths = list(paths)
        self.file = -1
        self.entries: dict[str, tuple[bytes, int, Any, bytes]] = {}
        self.external = sys.modules["_frozen_importlib_external"]

    def learn(self, paths: Iterable[str]) -> bool:
        """Remember modules to compile. Returns whether there are new ones."""
        new = [path for path in dict.fromkeys(paths) if path not in self.paths and import_report.is_own_source(path)]
        self.paths = [*self.paths, *new][:PATHS_LIMIT]
        return bool(new)

    def compile(self) -> None:
        """Compile them into the memory file. Called in a one-shot child, as the function's user."""
        compiled: dict[str, tuple[bytes, int, bytes, bytes]] = {}
        filters: Any = _warnings
        filters.filters.insert(0, ("error", None, Warning, None, 0))
        filters._filters_mutated()
        for path in self.paths:
            try:
                compiled[path] = self._compiled(path)
            except Exception:  # noqa: BLE001, S112  # what does not compile, or warns, does so in each run, as ever
                continue
        data = marshal.dumps(compiled)
        if len(data) <= LIMIT_BYTES:
            os.pwrite(self.file, data, 0)

    def _compiled(self, path: str) -> tuple[bytes, int, bytes, bytes]:
        with open(paths.CODE + path[len(paths.WORKSPACE) :], "rb") as file:
            source = file.read()
            modified = int(os.fstat(file.fileno()).st_mtime)
        code = compile(source, path, "exec", dont_inherit=True)
        return (
            source,
            modified,
            marshal.dumps(code),
            bytes(self.external._code_to_timestamp_pyc(code, modified, len(source))),
        )

    def load(self) -> None:
        """Read the memory file in a spare."""
        if self.file < 0:
            return
        data = os.pread(self.file, LIMIT_BYTES, 0)
        os.close(self.file)
        if data:
            for path, (source, modified, code, file) in marshal.loads(data).items():
                self.entries[path] = source, modified, marshal.loads(code), file

    def activate(self) -> None:
        """Give the bytecode to Python's loader of sources, from now on."""
        if self.entries:
            loader = self.external.SourceLoader
            loader.get_code = _replacement(self, loader.get_code)

    def code_of(self, loader: Any) -> Any:
        """Return the code of the module that `loader` is about to compile; None if Python must compile it."""
        entry = self.entries.get(loader.path)
        if entry is None or type(loader) is not self.external.SourceFileLoader:
            return None
        source, modified, code, data = entry
        cached = self.external.cache_from_source(loader.path)
        try:
            if os.path.lexists(cached) or int(os.stat(loader.path).st_mtime) != modified:
                return None
            if loader.get_data(loader.path) != source:
                return None
        except OSError:
            return None
        if not sys.dont_write_bytecode:
            loader._cache_bytecode(loader.path, cached, data)
        return code


def _replacement(bytecode: Bytecode, own: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method that replaces `SourceLoader.get_code`. It has the same name and file, so tracebacks leave it out too."""

    def get_code(self: Any, fullname: str) -> Any:
        code = bytecode.code_of(self) if hasattr(self, "path") else None
        return own(self, fullname) if code is None else code

    get_code.__code__ = get_code.__code__.replace(co_filename=FROZEN)
    return get_code
