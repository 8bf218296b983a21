"""The log of one build: a file of bounded size with the start and the end of its output, and the last lines.

The rule: a build may print any amount; disk and memory use stay bounded.
"""

from __future__ import annotations

import os
from pathlib import Path

KIB = 1024
HEAD_BYTES = 512 * KIB
TAIL_BYTES = 256 * KIB
SHOWN_BYTES = 4 * KIB
SHOWN_LINES = 40


class BuildLog:
    """Stores the output of a build. The caller must close it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        # A new file each time: somebody may still be reading the log of the previous build.
        path.unlink(missing_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._head_left = HEAD_BYTES
        self._tail = bytearray()
        self._since_head = 0

    def add(self, chunk: bytes) -> None:
        """Append some bytes."""
        head = chunk[: self._head_left]
        self._write(head)
        self._head_left -= len(head)
        self._since_head += len(chunk) - len(head)
        self._tail += chunk
        del self._tail[:-TAIL_BYTES]

    def close(self) -> None:
        """Write the end of the output, and close the file."""
        if self._descriptor < 0:
            return
        try:
            end = bytes(self._tail[-self._since_head :]) if self._since_head else b""
            if left_out := self._since_head - len(end):
                self._write(f"\n... {left_out} bytes left out ...\n".encode())
            self._write(end)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def last_line(self) -> str:
        """The last line that is not blank, shortened; empty if there is none."""
        return next((line.strip()[:200] for line in reversed(self._lines()) if line.strip()), "")

    def end(self) -> str:
        """The last lines, for use in a message."""
        return "\n".join(self._lines()[-SHOWN_LINES:])[-SHOWN_BYTES:]

    def says(self, *words: str) -> bool:
        """Whether any of `words` is in the end of the output."""
        return any(word.encode() in self._tail for word in words)

    def _lines(self) -> list[str]:
        text = self._tail[-2 * SHOWN_BYTES :].decode("utf-8", "replace").rstrip()
        return ["".join(c if c.isprintable() or c == "\t" else " " for c in line) for line in text.splitlines()]

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest logs of a folder."""
    found = []
    for path in folder.glob("*.log"):
        try:
            found.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:
            continue  # another builder prunes as well
    for _, path in sorted(found, reverse=True)[keep:]:
        path.unlink(missing_ok=True)
