"""The freezer of cgroup version 2 on a loaded kernel: a write is visible at once, and takes effect some time later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanogrid.execution.container.cgroup import Cgroup

CHECK_EVERY_S = 0.001


class LateFreezer:
    """A folder with the files of version 2 in front of a container's real freezer of any version.

    A write to `cgroup.freeze` is passed on, and reported by `cgroup.events`, only while `keeps_up` is set.
    """

    def __init__(self, folder: Path, real: Cgroup) -> None:
        folder.mkdir()
        self._wish, self._events = folder / "cgroup.freeze", folder / "cgroup.events"
        self._wish.write_text("0\n")
        self._tell(frozen=False)
        self._real = real
        self.cgroup = Cgroup(real.memory, real.cpu, folder)
        self.keeps_up = threading.Event()

    def is_wanted(self) -> bool:
        """Whether a freeze was requested, even if it has not taken effect yet."""
        return self._wish.read_text().startswith("1")

    def is_obeyed(self) -> bool:
        """Whether the container is frozen."""
        return self._real.is_frozen()

    def _tell(self, *, frozen: bool) -> None:
        self._events.write_text(f"populated 1\nfrozen {int(frozen)}\n")

    def _obey(self, stopping: threading.Event) -> None:
        obeyed = False
        while not stopping.wait(CHECK_EVERY_S):
            if self.keeps_up.is_set() and obeyed is not (wanted := self.is_wanted()):
                assert self._real.freeze() if wanted else self._real.thaw()
                obeyed = wanted
                self._tell(frozen=obeyed)


@contextmanager
def late_freezer(folder: Path, real: Cgroup) -> Iterator[LateFreezer]:
    """A freezer that keeps up at first, for the length of a `with` block."""
    freezer, stopping = LateFreezer(folder, real), threading.Event()
    freezer.keeps_up.set()
    thread = threading.Thread(target=freezer._obey, args=(stopping,))
    thread.start()
    try:
        yield freezer
    finally:
        stopping.set()
        thread.join()
        real.thaw()
