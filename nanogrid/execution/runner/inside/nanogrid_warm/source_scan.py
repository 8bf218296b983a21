"""Finds functions that could notice a warm interpreter, by words in their sources.

The rule: when in doubt, a function counts as one of them. A word with another meaning costs the start of a new interpreter, and nothing
else.
"""

# Every import here costs time and memory in every run: no pathlib, no contextlib.
# ruff: noqa: PTH123
# The programs import each other, and private parts of Python, in a way that mypy cannot see.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing must not be loaded in the function's interpreter
    from collections.abc import Callable

INTROSPECTION_WORDS = frozenset(
    b"gc countcallers addaudithook tracemalloc faulthandler getallocatedblocks getunicodeinternedsize _debugmallocstats getrusage getrefcount _bootstrap "
    b"_find_and_load path_importer_cache _ncallbacks __del__ _getframe_unwinder _frozen_importlib _testcapi "
    b"_testinternalcapi process_time process_time_ns __subclasses__ dispatch_table "
    b"_interpreters _xxsubinterpreters interpreters InterpreterPoolExecutor".split()
)
"""Modules and functions that show the heap, the import machinery, exit callbacks, or what a process has used so far.

`countcallers`: `trace` finds a function's class by what refers to it. `__del__`: when Python collects garbage depends on what was created since its start. `__subclasses__`, `dispatch_table`: they list classes of
hidden modules. Sub-interpreters start with the command line of the held interpreter.
"""

INTROSPECTION_PHRASES = (b"/proc",)
CTYPES_WORDS = frozenset((b"ctypes", b"cffi", b"CDLL"))
FILES_LIMIT = 2000
BYTES_LIMIT = 16 << 20
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
WORD_SEPARATORS = bytes(byte if byte in LETTERS or byte > 127 else 32 for byte in range(256))


class SourceScan:
    """What the sources of a function contain: `introspects` for words that could notice, `uses_ctypes` for ctypes."""

    def __init__(self, introspects: bool = False, uses_ctypes: bool = False) -> None:
        self.introspects = introspects
        self.uses_ctypes = uses_ctypes
        self._files = 0
        self._bytes = 0

    def folder(self, path: bytes, is_skipped: Callable[[str], bool] = lambda _: False) -> None:
        """Read the program's own sources in a folder, not those that are skipped. If there are too many, `introspects` is set."""
        with os.scandir(path) as entries:
            for entry in entries:
                if self.introspects:
                    return
                if is_skipped(os.fsdecode(entry.path)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    self.folder(entry.path, is_skipped)
                elif entry.name.endswith(b".py") or entry.is_symlink():
                    self._read(entry.path)

    def _read(self, path: bytes) -> None:
        try:
            with open(path, "rb") as file:
                data = file.read(BYTES_LIMIT)
        except OSError:
            return
        self._files += 1
        self._bytes += len(data)
        words = set(data.translate(WORD_SEPARATORS).split())
        self.uses_ctypes = self.uses_ctypes or not CTYPES_WORDS.isdisjoint(words)
        self.introspects = (
            not INTROSPECTION_WORDS.isdisjoint(words)
            or any(phrase in data for phrase in INTROSPECTION_PHRASES)
            or self._files > FILES_LIMIT
            or self._bytes > BYTES_LIMIT
        )
