"""The kernel's accounts, in the format of both cgroup versions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nanogrid.execution.container.cgroup import Cgroup, Gauge, Hierarchy, OpenCgroup, Usage, detect, locate
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


# -- the account of one run


@pytest.fixture
def open_files() -> Iterator[None]:
    """Fails where a test leaves a descriptor open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def on_v1(folder: Path, peak: str = "900\n", cpu: str = "1000\n", kills: int = 2) -> Cgroup:
    """A container's accounts as version 1 shows them."""
    oom = f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
    write(folder, memory__max_usage_in_bytes=peak, memory__oom_control=oom, cpuacct__usage=cpu)
    return Cgroup(folder, folder, folder)


def on_v2(folder: Path, peak: str = "900\n", cpu_us: int = 1, kills: int = 2) -> Cgroup:
    """A container's accounts as version 2 shows them."""
    events = f"low 0\noom 9\noom_kill {kills}\noom_group_kill 0\n"
    write(folder, memory__peak=peak, memory__events=events, cpu__stat=f"usage_usec {cpu_us}\nuser_usec 0\n")
    return Cgroup(folder, folder, folder)


@pytest.mark.parametrize("used_before", [False, True])
def test_a_run_is_measured_alone_on_v1(tmp_path: Path, open_files: None, used_before: bool) -> None:
    """The kernel is told to forget the peak; CPU time is what came on top; an OOM kill counts whenever it was."""
    with closing(Gauge(on_v1(tmp_path), used_before=used_before)) as gauge:
        assert (tmp_path / "memory.max_usage_in_bytes").read_text().startswith("0")
        on_v1(tmp_path, peak="300\n", cpu="1500\n", kills=3)
        assert gauge.read() == Usage(300, 500, 3)


@pytest.mark.parametrize("used_before", [False, True])
def test_a_run_is_measured_alone_on_v2(tmp_path: Path, open_files: None, used_before: bool) -> None:
    """The peak is reset for one descriptor, and read from that very one as often as is wanted."""
    with closing(Gauge(on_v2(tmp_path), used_before=used_before)) as gauge:
        assert (tmp_path / "memory.peak").read_text().startswith("reset")
        on_v2(tmp_path, peak="300\n", cpu_us=3)
        (tmp_path / "memory.peak").rename(tmp_path / "the same file")
        assert gauge.read() == gauge.read() == Usage(300, 2000, 2)


@pytest.mark.parametrize(("used_before", "peak"), [(False, 300), (True, None)])
def test_a_peak_that_cannot_be_reset_is_that_of_the_first_run_only(
    tmp_path: Path, open_files: None, used_before: bool, peak: int | None
) -> None:
    """Later the container's peak may be an earlier run's: it is not told rather than told wrong."""
    cgroup = on_v2(tmp_path)
    (tmp_path / "memory.peak").unlink()
    with closing(Gauge(cgroup, used_before=used_before)) as gauge:
        on_v2(tmp_path, peak="300\n", cpu_us=3)
        assert gauge.read() == Usage(peak, 2000, 2)


@pytest.mark.parametrize(("used_before", "peak"), [(False, 0), (True, None)])
def test_a_kernel_that_refuses_the_reset_leaves_nothing_open(
    tmp_path: Path, open_files: None, used_before: bool, peak: int | None
) -> None:
    """Kernels before 6.12 have the file and no reset; a device that is always full refuses as they do."""
    cgroup = on_v2(tmp_path)
    (tmp_path / "memory.peak").unlink()
    (tmp_path / "memory.peak").symlink_to("/dev/full")
    with closing(Gauge(cgroup, used_before=used_before)) as gauge:
        (tmp_path / "memory.peak").unlink()
        (tmp_path / "memory.peak").write_text("0\n")
        assert gauge.read().peak_memory_bytes == peak


@pytest.mark.parametrize("make", [on_v1, on_v2])
def test_a_container_that_dies_while_it_is_measured_tells_nothing(
    tmp_path: Path, open_files: None, make: Callable[[Path], Cgroup]
) -> None:
    """Its accounts are gone at the run's end: None, and no error."""
    cgroup = make(tmp_path)
    with closing(Gauge(cgroup, used_before=True)) as gauge:
        for path in tmp_path.iterdir():
            os.truncate(path, 0)  # what is open already reads as nothing
            path.unlink()
        assert gauge.read() == Usage(None, None, None)


def test_a_host_without_accounts_measures_nothing(open_files: None) -> None:
    """Every figure is None; closing twice is fine."""
    gauge = Gauge(Cgroup(None, None), used_before=False)
    assert gauge.read() == Usage(None, None, None)
    gauge.close()
    gauge.close()


def test_an_account_that_appears_late_is_no_difference(tmp_path: Path) -> None:
    """Without a figure from before there is none of this run; one that went back is zero."""
    with closing(Gauge(Cgroup(tmp_path, tmp_path), used_before=True)) as gauge:
        on_v1(tmp_path)
        assert gauge.read() == Usage(None, None, 2)
    with closing(Gauge(on_v1(tmp_path), used_before=True)) as gauge:
        on_v1(tmp_path, cpu="1\n", kills=0)
        assert gauge.read() == Usage(900, 0, 0)


@pytest.mark.parametrize("name", ["memory__usage_in_bytes", "memory__current"])
def test_memory_in_use_now_is_read_on_both_versions(tmp_path: Path, name: str) -> None:
    """It is what an idle container counts with."""
    assert Cgroup(tmp_path, None).memory_bytes() is None
    write(tmp_path, **{name: "8388608\n"})
    assert Cgroup(tmp_path, None).memory_bytes() == 8_388_608


# -- the freezer


@pytest.mark.parametrize(
    ("name", "at_rest", "frozen", "thawed"),
    [("freezer.state", "THAWED", "FROZEN", "THAWED"), ("cgroup.freeze", "0", "1", "0")],
)
def test_a_container_is_paused_and_goes_on_by_one_write(
    tmp_path: Path, name: str, at_rest: str, frozen: str, thawed: str
) -> None:
    """The words are those of the version whose file is there."""
    (tmp_path / name).write_text(at_rest)
    cgroup = Cgroup(None, None, tmp_path)
    assert cgroup.can_freeze()
    assert cgroup.freeze()
    assert (tmp_path / name).read_text() == frozen
    assert cgroup.thaw()
    assert (tmp_path / name).read_text() == thawed


@pytest.mark.parametrize(
    ("name", "text", "frozen"),
    [
        ("freezer.state", "THAWED\n", False),
        ("freezer.state", "FREEZING\n", True),
        ("freezer.state", "FROZEN\n", True),
        ("cgroup.events", "populated 1\nfrozen 0\n", False),
        ("cgroup.events", "populated 1\nfrozen 1\n", True),
    ],
)
def test_a_frozen_container_is_seen(tmp_path: Path, name: str, text: str, frozen: bool) -> None:
    """Whoever froze it; one that is on the way there counts."""
    (tmp_path / name).write_text(text)
    assert Cgroup(None, None, tmp_path).is_frozen() is frozen


@pytest.mark.parametrize("make", [Cgroup, OpenCgroup])
@pytest.mark.parametrize(
    ("wanted", "come_of_it", "frozen"), [("0", 0, False), ("1", 0, True), ("1", 1, True), ("0", 1, True)]
)
def test_a_container_that_is_to_be_frozen_counts(
    tmp_path: Path, open_files: None, make: type[Cgroup], wanted: str, come_of_it: int, frozen: bool
) -> None:
    """Version 2 says at once what is wanted, and later what has come of it; a cgroup above may be the one that is frozen."""
    write(tmp_path, cgroup__freeze=f"{wanted}\n", cgroup__events=f"populated 1\nfrozen {come_of_it}\n")
    cgroup = make(None, None, tmp_path)
    assert cgroup.is_frozen() is frozen
    if isinstance(cgroup, OpenCgroup):
        cgroup.close()


@pytest.mark.parametrize("folder", [None, "empty", "gone"])
def test_without_a_freezer_nothing_is_frozen(tmp_path: Path, folder: str | None) -> None:
    """No folder, or one without files: the engine has to be asked, and no file is made."""
    (tmp_path / "empty").mkdir()
    cgroup = Cgroup(None, None, tmp_path / folder if folder else None)
    assert (cgroup.can_freeze(), cgroup.freeze(), cgroup.thaw(), cgroup.is_frozen()) == (False, False, False, False)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_freezer_that_refuses_is_told(tmp_path: Path) -> None:
    """A write that fails is False, so that the engine is asked."""
    (tmp_path / "freezer.state").symlink_to("/dev/full")
    cgroup = Cgroup(None, None, tmp_path)
    assert (cgroup.freeze(), cgroup.thaw()) == (False, False)


def test_the_freezer_is_found_beside_the_accounts(tmp_path: Path) -> None:
    """On version 1 it has a tree of its own, on version 2 all is in one folder."""
    one, two = tmp_path / "one", tmp_path / "two"
    v1(one, f"docker/{CONTAINER}")
    write(one / "freezer" / "docker" / CONTAINER, freezer__state="THAWED\n")
    v2(two, f"docker/{CONTAINER}")
    write(two / "docker" / CONTAINER, cgroup__freeze="0\n")
    for root in (one, two):
        assert locate(CONTAINER, 0, Settings(cgroup_dir=root)).freeze()
    assert (one / "freezer" / "docker" / CONTAINER / "freezer.state").read_text().startswith("FROZEN")
    assert (two / "docker" / CONTAINER / "cgroup.freeze").read_text().startswith("1")
