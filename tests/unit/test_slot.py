"""The folder of a warm container: how code, payload and result get there and back."""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanogrid.errors import ContainerStartError
from nanogrid.execution.container.report import Result
from nanogrid.execution.container.slot import Slot, hard_link_copy, in_memory

LONG_AGO_NS = 1_000_000_000_000_000_000
LIMIT_BYTES = 1000


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    """A container's folder as it is before the container starts."""
    made = Slot(tmp_path / "runs" / "owner" / "7")
    made.create()
    yield made
    made.remove()


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Path]:
    """A function as it lies in the cache: read-only, with fixed times, a nested folder, an empty one and a link."""
    root = tmp_path / "cache" / "function"
    (root / "package" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "main.py").write_text("import package")
    (root / "package" / "deep" / "data.txt").write_text("data")
    (root / "run").write_text("#!/bin/sh")
    (root / "link").symlink_to("package/deep/../deep/data.txt")
    (root / "dangling").symlink_to("/no/such/file")
    close(root)
    yield root
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o700)


def close(root: Path) -> None:
    """Take the right to write from a whole tree, and set all its times."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o555 if name == "run" else 0o444)
                os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
        for name in folders:
            (Path(folder) / name).chmod(0o555)
            os.utime(Path(folder) / name, ns=(LONG_AGO_NS, LONG_AGO_NS))
    root.chmod(0o555)
    os.utime(root, ns=(LONG_AGO_NS, LONG_AGO_NS))


def tree(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time of change in nanoseconds, and link text of everything in a tree. Links have no times of their own."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        link = str(path.readlink()) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (status.st_mode, 0 if link else status.st_mtime_ns, link)
    return found


# -- the hard-link copy


def test_a_hard_link_copy_is_the_same_tree(code: Path, tmp_path: Path) -> None:
    """Names, modes, times of files and folders, and the text of links, dangling ones included."""
    before = tree(code)
    hard_link_copy(code, tmp_path / "copy")
    assert tree(tmp_path / "copy") == before == tree(code)
    Slot(tmp_path / "copy").remove()


def test_a_hard_link_copy_shares_files_and_owns_folders(code: Path, tmp_path: Path) -> None:
    """Files cost no space and are in the page cache once; nobody who changes a folder changes the cache."""
    target = tmp_path / "copy"
    hard_link_copy(code, target)
    for path in code.rglob("*"):
        twin = target / path.relative_to(code)
        if path.is_symlink():
            assert twin.is_symlink()
        else:
            assert (path.lstat().st_ino == twin.lstat().st_ino) is path.is_file()
    Slot(target).remove()


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    """Nothing outside of the tree comes in by one."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private").write_text("x")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "way out").symlink_to(tmp_path / "outside")
    hard_link_copy(tmp_path / "code", tmp_path / "copy")
    assert (tmp_path / "copy" / "way out").is_symlink()


def test_a_hard_link_copy_replaces_nothing(code: Path, tmp_path: Path) -> None:
    """A target that is there already is an error."""
    (tmp_path / "copy").mkdir()
    with pytest.raises(FileExistsError):
        hard_link_copy(code, tmp_path / "copy")


# -- making the folder


def test_a_new_slot_has_no_code(slot: Slot) -> None:
    """A container can start in it: places to mount are there, and nothing else; a run is given nothing here."""
    assert sorted(path.name for path in slot.path.rglob("*")) == ["compiler-cache", "run", "runner"]
    assert slot.path.stat().st_mode & 0o777 == 0o755


def test_a_launchers_slot_has_pipes_and_a_result(slot: Slot) -> None:
    """The result can be written by the function's user, and is the only file that can."""
    slot.create_for_launcher()
    assert stat.S_ISFIFO(slot.pipe("control").stat().st_mode)
    writable = [path.name for path in slot.path.rglob("*") if path.is_file() and path.stat().st_mode & 0o022]
    assert writable == ["result.json"]


def test_modes_do_not_depend_on_the_workers_mask(tmp_path: Path) -> None:
    """A worker that is started with a strict umask gives its containers folders that they can read."""
    before = os.umask(0o077)
    try:
        slot = Slot(tmp_path / "7")
        slot.create()
        slot.create_for_launcher()
    finally:
        os.umask(before)
    assert slot.path.stat().st_mode & 0o777 == 0o755
    assert slot.result.stat().st_mode & 0o777 == 0o666
    assert slot.result.parent.stat().st_mode & 0o777 == 0o755


def test_a_slot_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """The error names the folder and the reason, and can be tried again."""
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(
        ContainerStartError, match=r"the folder .*/runs/7 could not be created: .*Not a directory"
    ) as raised:
        Slot(tmp_path / "runs" / "7").create()
    assert raised.value.retryable
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


# -- the function


def test_code_and_packages_appear_whole(slot: Slot, code: Path, tmp_path: Path) -> None:
    """Both under their names, and no draft of either is left."""
    packages = tmp_path / "layer"
    packages.mkdir()
    (packages / "library.py").write_text("")
    slot.place(code, packages)
    assert tree(slot.path / "code") == tree(code)
    assert (slot.path / "packages" / "library.py").samefile(packages / "library.py")
    names = {path.name for path in slot.path.iterdir()}
    assert names == {"code", "packages", "compiler-cache", "run", "runner"}


def test_a_function_without_a_layer_has_no_packages(slot: Slot, code: Path) -> None:
    """The runner sees by that whether there are any."""
    slot.place(code, None)
    assert not (slot.path / "packages").exists()


def test_a_container_belongs_to_the_first_code_it_gets(slot: Slot, code: Path, tmp_path: Path) -> None:
    """Other code does not come in later, over it or beside it."""
    slot.place(code, None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "main.py").write_text("print('other')")
    with pytest.raises(ContainerStartError, match="the code could not be linked"):
        slot.place(tmp_path / "other", None)
    assert (slot.path / "code" / "main.py").read_text() == "import package"


def test_code_that_left_the_cache_is_an_error_of_ours(slot: Slot, tmp_path: Path) -> None:
    """Evicted between being found and being laid out: another attempt fetches it again; half of it is never seen."""
    with pytest.raises(ContainerStartError, match="the code could not be linked") as raised:
        slot.place(tmp_path / "gone", None)
    assert raised.value.retryable
    assert not (slot.path / "code").exists()


# -- payload


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (None, ""),
        ({"a": [1, None, "ü"]}, '{"a": [1, null, "ü"]}'),
        (0, "0"),
        ("", '""'),
        (False, "false"),
        ("\ud800", '"?"'),
        ("ü" * 3_000_000, f'"{"ü" * 3_000_000}"'),
        (b"3 4\r\n", "3 4\r\n"),
        (b"", ""),
    ],
    ids=["nothing", "object", "zero", "empty", "false", "surrogate", "large", "bytes", "no bytes"],
)
def test_the_payload_is_json_in_memory(slot: Slot, payload: object, text: str) -> None:
    """It has no name, and whoever holds it can read all of it and change nothing; None is no text at all."""
    descriptor = in_memory(payload)
    try:
        assert os.pread(descriptor, 10_000_000, 0) == text.encode()
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.truncate(descriptor, len(text.encode()) + 1)
        assert os.fstat(descriptor).st_nlink == 0
    finally:
        os.close(descriptor)


def test_what_a_launched_run_is_given_is_for_its_user_alone(slot: Slot) -> None:
    """Command, environment and payload can be read by the function's user, and are gone when the run is over."""
    slot.create_for_launcher()
    slot.write_run(["cat", "a b"], {"SECRET": "x y"}, {"a": 1}, 65534)
    assert slot.start_script.read_text() == "exec env 'SECRET=x y' cat 'a b'\n"
    assert slot.payload.read_text() == '{"a": 1}'
    for path in (slot.start_script, slot.payload):
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_uid) in ((0o400, 65534), (0o444, os.getuid()))
        assert status.st_mode & 0o777 == (0o400 if os.getuid() == 0 else 0o444)
    slot.delete_run()
    slot.delete_run()
    assert not slot.start_script.exists()
    assert not slot.payload.exists()


def test_a_run_that_cannot_be_written_is_an_error_of_ours(slot: Slot) -> None:
    """The container's folder is gone: another attempt gets another container."""
    slot.remove()
    with pytest.raises(ContainerStartError, match="the command could not be written"):
        slot.write_run(["true"], {}, {}, 65534)


# -- result


def test_a_result_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """Nothing written is None, and so is too much, with its size."""
    for size, expected in ((0, None), (1, b"x"), (LIMIT_BYTES, b"x" * LIMIT_BYTES), (LIMIT_BYTES + 1, None)):
        (tmp_path / "result").write_bytes(b"x" * size)
        with (tmp_path / "result").open("rb") as file:
            assert Result.read(file.fileno(), LIMIT_BYTES) == Result(size, expected)


def test_a_result_that_is_no_file_is_none() -> None:
    """Whatever a container sends in its place is not read."""
    reading, writing = os.pipe()
    os.write(writing, b"x")
    os.close(writing)
    try:
        assert Result.read(reading, LIMIT_BYTES) == Result(0, None)
    finally:
        os.close(reading)


# -- looking at it again


def test_a_slot_that_is_as_it_was_made_is_well(slot: Slot, code: Path) -> None:
    """Before and after it has its function."""
    assert slot.problem() is None
    slot.place(code, code)
    assert slot.problem() is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: (path / "new").touch(), "'new' has appeared in its folder"),
        (lambda path: (path / "run").chmod(0o4755), "'run' in its folder has mode 44755 and owner"),
        (lambda path: (path / "runner").chmod(0o777), "'runner' in its folder has mode 40777"),
        (
            lambda path: ((path / "run").rmdir(), (path / "run").symlink_to("/etc")),
            "'run' in its folder has mode 120777",
        ),
        (lambda path: ((path / "run").rmdir(), (path / "run").touch()), "'run' in its folder has mode 100"),
        (lambda path: path.rename(path.parent / "x"), "its folder cannot be read"),
    ],
    ids=["new", "set-id", "open", "link", "file", "gone"],
)
def test_a_slot_that_was_changed_is_told(slot: Slot, change: Callable[[Path], object], says: str) -> None:
    """Whatever could do that, its container is not used again."""
    change(slot.path)
    assert says in str(slot.problem())


# -- removal


def as_user(folder: Path, work: Callable[[], None]) -> int:
    """Exit code of a child that does some work in a folder, as nobody where the tests run as root: root may write anywhere."""
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)  # before: the folders above it are closed to others
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
        except BaseException:  # noqa: BLE001  # the parent is told by the exit code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_read_only_folders_are_removed_by_their_owner(tmp_path: Path) -> None:
    """A worker that is not root removes a copy too, although nobody may write to its folders; the cache stays as it was."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)

    def work() -> None:
        source = Path("code")
        (source / "a" / "b").mkdir(parents=True)
        (source / "a" / "b" / "file").write_text("x")
        close(source)
        before = tree(source)
        slot = Slot(Path("7"))
        slot.create()
        slot.place(source, None)
        slot.remove()
        assert not slot.path.exists()
        assert tree(source) == before
        Slot(source).remove()

    assert as_user(place, work) == 0
    assert list(place.iterdir()) == []


def test_removal_follows_no_link(slot: Slot, tmp_path: Path) -> None:
    """What a link of the code names, in the cache or elsewhere, is neither opened nor removed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    outside.chmod(0o500)
    source = tmp_path / "code"
    source.mkdir()
    (source / "way out").symlink_to(outside)
    slot.place(source, None)
    slot.remove()
    assert not slot.path.exists()
    assert (outside / "kept").exists()
    assert outside.stat().st_mode & 0o777 == 0o500


def test_removing_twice_is_fine(slot: Slot) -> None:
    """Whoever removes it first was right."""
    slot.remove()
    slot.remove()
    assert not slot.path.exists()
