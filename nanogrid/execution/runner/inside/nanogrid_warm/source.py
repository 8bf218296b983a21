"""Which functions could tell a warm interpreter from a new one: by words in their sources.

The rule: to be on the safe side. A word that is not meant so costs the start of a new interpreter, and nothing else.
"""

# What is imported here takes time and memory of every run: so neither pathlib nor contextlib.
# ruff: noqa: PTH123
# The programs find each other, and private parts of Python, where mypy does not look.
# mypy: disable-error-code="import-not-found, no-any-return, attr-defined"

from __future__ import annotations

import os

WORDS = frozenset(
    b"gc countcallers addaudithook tracemalloc faulthandler getallocatedblocks getunicodeinternedsize _debugmallocstats getrusage getrefcount _bootstrap "
    b"_find_and_load path_importer_cache _ncallbacks __del__ _getframe_unwinder _frozen_importlib _testcapi "
    b"_testinternalcapi process_time process_time_ns __subclasses__ dispatch_table "
    b"_interpreters _xxsubinterpreters interpreters InterpreterPoolExecutor".split()
)
"""Modules and functions that show the heap, the import machinery, exit callbacks, or what a process has used so far.

`countcallers`: `trace` finds a function's class by what refers to it. `__del__`: when Python collects garbage depends on what was
created since its start. `__subclasses__`, `dispatch_table`: a module that is hidden has its classes there. Further interpreters begin
with the command line of the held one.
"""

PHRASES = (b"/proc",)
CTYPES = frozenset((b"ctypes", b"cffi", b"CDLL"))
FILES_LIMIT = 2000
BYTES_LIMIT = 16 << 20
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
SPACED = bytes(byte if byte in LETTERS or byte > 127 else 32 for byte in range(256))


class Scan:
    """What the sources of a function say."""

    def __init__(self, curious: bool = False, ctypes: bool = False) -> None:
        self.curious = curious
        self.ctypes = ctypes
        self._files = 0
        self._bytes = 0

    def folder(self, path: bytes) -> None:
        """Read all sources in a folder. Too many of them count as curious."""
        with os.scandir(path) as entries:
            for entry in entries:
                if self.curious:
                    return
                if entry.is_dir(follow_symlinks=False):
                    self.folder(entry.path)
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
        words = set(data.translate(SPACED).split())
        self.ctypes = self.ctypes or not CTYPES.isdisjoint(words)
        self.curious = (
            not WORDS.isdisjoint(words)
            or any(phrase in data for phrase in PHRASES)
            or self._files > FILES_LIMIT
            or self._bytes > BYTES_LIMIT
        )
