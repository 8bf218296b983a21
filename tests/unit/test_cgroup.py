"""The kernel's accounts, in the format of both cgroup versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogrid.container.cgroup import Cgroup, Hierarchy, Usage, detect, locate
from nanogrid.settings import Settings

CONTAINER = "5dd59f56dfc7dbf48dd8e4fcdc104441caab67acb3b36e75c41b3cd54f974bb0"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def v1(root: Path, path: str) -> None:
    write(root / "memory", memory__usage_in_bytes="1\n")
    write(
        root / "memory" / path,
        memory__max_usage_in_bytes="67108864\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )
    write(root / "cpuacct" / path, cpuacct__usage="15820904\n")


def v2(root: Path, path: str) -> None:
    write(root, cgroup__controllers="cpuset cpu io memory pids\n", cpu__stat="usage_usec 1\n")
    write(
        root / path,
        memory__peak="67108864\n",
        memory__events="low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n",
        cpu__stat="usage_usec 15820\nuser_usec 10000\nsystem_usec 5820\n",
    )


@pytest.mark.parametrize("path", [f"docker/{CONTAINER}", f"system.slice/docker-{CONTAINER}.scope"])
@pytest.mark.parametrize(("make", "version", "cpu_ns"), [(v1, 1, 15_820_904), (v2, 2, 15_820_000)])
def test_both_versions_under_both_drivers(tmp_path: Path, make: object, version: int, cpu_ns: int, path: str) -> None:
    """Peak, CPU time and OOM kills are read where the cgroupfs and the systemd driver put them."""
    assert callable(make)
    make(tmp_path, path)
    settings = Settings(cgroup_dir=tmp_path)
    assert detect(settings) == Hierarchy(version, readable=True)
    assert locate(CONTAINER, 0, settings).read() == Usage(67_108_864, cpu_ns, 2)


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    """A host that tells nothing (no tree, an old kernel without memory.peak) gives None, not zero."""
    settings = Settings(cgroup_dir=tmp_path)
    assert detect(settings) == Hierarchy(None, readable=False)
    assert locate(CONTAINER, 0, settings).read() == Usage(None, None, None)
    v2(tmp_path, f"docker/{CONTAINER}")
    (tmp_path / "docker" / CONTAINER / "memory.peak").unlink()
    assert locate(CONTAINER, 0, settings).read().peak_memory_bytes is None


def test_accounts_that_vanish_are_none(tmp_path: Path) -> None:
    """A cgroup that is removed between two looks gives None."""
    assert Cgroup(tmp_path / "gone", tmp_path / "gone").read() == Usage(None, None, None)
