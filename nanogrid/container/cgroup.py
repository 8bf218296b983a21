"""What a container used, read from the kernel's own accounts (cgroup v1 and v2).

The engine's stats call takes seconds and its OOM flag lags; the files here are exact, and exist as long as a process of
the container does. Sources: the kernel's `cgroup-v1/memory.rst` and `cgroup-v2.rst`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogrid.settings import Settings


@dataclass(frozen=True)
class Usage:
    """Figures since the container's start. None: this host does not tell."""

    peak_memory_bytes: int | None = None
    cpu_ns: int | None = None
    oom_kills: int | None = None


@dataclass(frozen=True)
class Cgroup:
    """Where one container's accounts lie. On v2 both folders are the same."""

    memory: Path | None
    cpu: Path | None

    def read(self) -> Usage:
        """The figures now. Files that are missing or unreadable give None."""
        return Usage(
            _first_number(self.memory, "memory.peak", "memory.max_usage_in_bytes"),
            self._cpu_ns(),
            self._oom_kills(),
        )

    def _cpu_ns(self) -> int | None:
        v2_us = _field(self.cpu, "cpu.stat", "usage_usec")
        return v2_us * 1000 if v2_us is not None else _first_number(self.cpu, "cpuacct.usage")

    def _oom_kills(self) -> int | None:
        v2 = _field(self.memory, "memory.events", "oom_kill")
        return v2 if v2 is not None else _field(self.memory, "memory.oom_control", "oom_kill")


@dataclass(frozen=True)
class Hierarchy:
    """The host's cgroup version (1 or 2, None where no tree is mounted) and whether its memory accounts can be read."""

    version: int | None
    readable: bool


def detect(settings: Settings) -> Hierarchy:
    """What this host offers, for `nanogrid doctor`."""
    root = settings.cgroup_dir
    if (root / "cgroup.controllers").is_file():
        return Hierarchy(2, _has_any(root, "memory.stat", "cpu.stat"))
    if (root / "memory").is_dir():
        return Hierarchy(1, _has_any(root / "memory", "memory.usage_in_bytes"))
    return Hierarchy(None, readable=False)


def locate(container_id: str, pid: int, settings: Settings) -> Cgroup:
    """Find a running container's accounts: by its first process, else where Docker's two cgroup drivers put them.

    The process is not to be seen where the worker itself runs in a container without the host's pid namespace.
    """
    root = settings.cgroup_dir
    unified = (root / "cgroup.controllers").is_file()
    memory_root, cpu_root = (root, root) if unified else (root / "memory", root / "cpuacct")
    return Cgroup(
        _existing(memory_root, _relative(pid, "" if unified else "memory", container_id)),
        _existing(cpu_root, _relative(pid, "" if unified else "cpuacct", container_id)),
    )


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
        return (folder / name).read_text()
    except OSError:
        return None


def _first_number(folder: Path | None, *names: str) -> int | None:
    for name in names:
        text = _read(folder, name)
        if text is not None and text.strip().isdigit():
            return int(text)
    return None


def _field(folder: Path | None, name: str, field: str) -> int | None:
    for line in (_read(folder, name) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == field:
            return int(value)
    return None
