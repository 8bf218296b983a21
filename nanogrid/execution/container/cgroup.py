"""Reads a container's resource usage and controls its freezer, through the kernel's files (cgroup v1 and v2).

The engine's stats call takes seconds and its OOM flag lags. These files are exact, and exist as long as the container has
a process. Sources: the kernel's `cgroup-v1/memory.rst`, `cgroup-v1/freezer-subsystem.rst` and `cgroup-v2.rst`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogrid.settings import Settings


@dataclass(frozen=True)
class Usage:
    """Figures for one run, or since the container's start. None: this host does not report the figure."""

    peak_memory_bytes: int | None = None
    cpu_ns: int | None = None
    oom_kills: int | None = None


class Gauge:
    """Measures one run in a container that may have had other runs: peak from now on, CPU time as a difference.

    OOM kills need no difference: a container with an OOM kill is not used again.

    On v1, writing to the peak's file resets it. On v2, a reset applies only to the descriptor it was written to, and needs
    Linux 6.12. If neither works, the peak of a container that was used before is unknown.
    """

    def __init__(self, cgroup: Cgroup, *, used_before: bool) -> None:
        self._cgroup = cgroup
        self._v2_peak = -1
        self._knows_peak = self._reset_peak() or not used_before
        self._cpu_ns = cgroup.cpu_ns()

    def read(self) -> Usage:
        """Return the usage since this gauge was created."""
        return Usage(
            self._peak() if self._knows_peak else None,
            _difference(self._cgroup.cpu_ns(), self._cpu_ns),
            self._cgroup.oom_kills(),
        )

    def close(self) -> None:
        """Close the descriptor."""
        if self._v2_peak >= 0:
            os.close(self._v2_peak)
            self._v2_peak = -1

    def _reset_peak(self) -> bool:
        folder = self._cgroup.memory
        if folder is None:
            return False
        if self._cgroup.reset_peak():
            return True
        try:
            self._v2_peak = os.open(folder / "memory.peak", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.write(self._v2_peak, b"reset")
        except OSError:
            self.close()
            return False
        return True

    def _peak(self) -> int | None:
        if self._v2_peak >= 0:
            try:
                return int(os.pread(self._v2_peak, 64, 0))
            except (OSError, ValueError):  # the container is gone, and so are its accounts
                return None
        return self._cgroup.peak_memory_bytes()


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else max(0, now - before)


@dataclass(frozen=True)
class Cgroup:
    """The folders of one container's accounts and freezer. On v2 they are all the same folder."""

    memory: Path | None
    cpu: Path | None
    freezer: Path | None = None

    def read(self) -> Usage:
        """The figures since the container's start. Files that are missing or unreadable give None."""
        return Usage(self.peak_memory_bytes(), self.cpu_ns(), self.oom_kills())

    def peak_memory_bytes(self) -> int | None:
        """The peak memory use since the start or the last reset."""
        return self._first_number(self.memory, "memory.max_usage_in_bytes", "memory.peak")

    def reset_peak(self) -> bool:
        """Restart the peak from the current memory use. Return False if this host does not permit it, or uses v2."""
        return self._write(self.memory, "memory.max_usage_in_bytes", b"0")

    def memory_bytes(self) -> int | None:
        """The memory in use now."""
        return self._first_number(self.memory, "memory.usage_in_bytes", "memory.current")

    def cpu_ns(self) -> int | None:
        """CPU time since the start, in nanoseconds."""
        v1_ns = self._first_number(self.cpu, "cpuacct.usage")
        if v1_ns is not None:
            return v1_ns
        v2_us = self._field(self.cpu, "cpu.stat", "usage_usec")
        return None if v2_us is None else v2_us * 1000

    def oom_kills(self) -> int | None:
        """How many processes the kernel has killed in this cgroup because memory ran out."""
        v1 = self._field(self.memory, "memory.oom_control", "oom_kill")
        return v1 if v1 is not None else self._field(self.memory, "memory.events", "oom_kill")

    def is_frozen(self) -> bool:
        """Whether all processes are frozen or about to be, no matter who froze them."""
        v1 = self._read(self.freezer, "freezer.state")
        if v1 is not None:
            return v1.strip() != "THAWED"
        # `cgroup.freeze` shows a request at once. `cgroup.events` follows up to a tenth of a second later, but also shows
        # that a cgroup above this one was frozen.
        wanted = self._first_number(self.freezer, "cgroup.freeze") == 1
        return wanted or self._field(self.freezer, "cgroup.events", "frozen") == 1

    def freeze(self) -> bool:
        """Freeze all processes. Return False if this host does not permit it."""
        return self._write(self.freezer, "freezer.state", b"FROZEN") or self._write(self.freezer, "cgroup.freeze", b"1")

    def thaw(self) -> bool:
        """Thaw all processes. Return False if this host does not permit it."""
        return self._write(self.freezer, "freezer.state", b"THAWED") or self._write(self.freezer, "cgroup.freeze", b"0")

    def can_freeze(self) -> bool:
        """Whether this process may write the freezer's file."""
        names = ("freezer.state", "cgroup.freeze")
        return self.freezer is not None and any(os.access(self.freezer / name, os.W_OK) for name in names)

    def _read(self, folder: Path | None, name: str) -> str | None:
        return _read(folder, name)

    def _write(self, folder: Path | None, name: str, text: bytes) -> bool:
        return _write(folder, name, text)

    def _first_number(self, folder: Path | None, *names: str) -> int | None:
        for name in names:
            text = self._read(folder, name)
            if text is not None and text.strip().isdigit():
                return int(text)
        return None

    def _field(self, folder: Path | None, name: str, field: str) -> int | None:
        for line in (self._read(folder, name) or "").splitlines():
            key, _, value = line.partition(" ")
            if key == field:
                return int(value)
        return None


class OpenCgroup(Cgroup):
    """A cgroup whose files stay open, for a container with many runs. Not thread-safe."""

    def __init__(self, memory: Path | None, cpu: Path | None, freezer: Path | None = None) -> None:
        super().__init__(memory, cpu, freezer)
        object.__setattr__(self, "_open", {})

    def close(self) -> None:
        """Close the files. The next use opens them again."""
        for descriptor in self._files().values():
            if descriptor >= 0:
                os.close(descriptor)
        self._files().clear()

    def _files(self) -> dict[tuple[Path, str, int], int]:
        files: dict[tuple[Path, str, int], int] = self.__dict__["_open"]
        return files

    def _descriptor(self, folder: Path | None, name: str, flags: int) -> int:
        if folder is None:
            return -1
        files, key = self._files(), (folder, name, flags)
        if key not in files:
            try:
                files[key] = os.open(f"{folder}/{name}", flags | os.O_CLOEXEC)
            except OSError:
                files[key] = -1
        return files[key]

    def _read(self, folder: Path | None, name: str) -> str | None:
        descriptor = self._descriptor(folder, name, os.O_RDONLY)
        try:
            return None if descriptor < 0 else os.pread(descriptor, 65_536, 0).decode()
        except OSError:
            return None

    def _write(self, folder: Path | None, name: str, text: bytes) -> bool:
        descriptor = self._descriptor(folder, name, os.O_WRONLY)
        try:
            return descriptor >= 0 and os.pwrite(descriptor, text, 0) > 0
        except OSError:
            return False


@dataclass(frozen=True)
class Hierarchy:
    """The host's cgroup version (1 or 2, None if no tree is mounted) and whether its memory accounts can be read."""

    version: int | None
    readable: bool


def detect(settings: Settings) -> Hierarchy:
    """Detect what this host offers, for `nanogrid doctor`."""
    root = settings.cgroup_dir
    if (root / "cgroup.controllers").is_file():
        return Hierarchy(2, _has_any(root, "memory.stat", "cpu.stat"))
    if (root / "memory").is_dir():
        return Hierarchy(1, _has_any(root / "memory", "memory.usage_in_bytes"))
    return Hierarchy(None, readable=False)


def locate(container_id: str, pid: int, settings: Settings) -> Cgroup:
    """Find a running container's accounts: by its first process, else at the paths that Docker's two cgroup drivers use.

    The process is not visible if the worker itself runs in a container without the host's pid namespace.
    """
    root = settings.cgroup_dir
    unified = (root / "cgroup.controllers").is_file()

    def folder(controller: str) -> Path | None:
        relative = _relative(pid, "" if unified else controller, container_id)
        return _existing(root if unified else root / controller, relative)

    return Cgroup(folder("memory"), folder("cpuacct"), folder("freezer"))


def _relative(pid: int, controller: str, container_id: str) -> Iterator[str]:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines() if pid else []
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and container_id in path:
            yield path.lstrip("/")
    yield f"docker/{container_id}"
    yield f"system.slice/docker-{container_id}.scope"


def _existing(root: Path, candidates: Iterator[str]) -> Path | None:
    return next((root / path for path in candidates if (root / path).is_dir()), None)


def _has_any(folder: Path, *names: str) -> bool:
    return any(_read(folder, name) is not None for name in names)


def _read(folder: Path | None, name: str) -> str | None:
    if folder is None:
        return None
    try:
        descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, 65_536).decode()
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _write(folder: Path | None, name: str, text: bytes) -> bool:
    if folder is None:
        return False
    try:
        descriptor = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(descriptor, text) > 0
    except OSError:
        return False
    finally:
        os.close(descriptor)
