"""Packing: the same tree gives the same bytes, and nothing else than the tree gets in."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogrid.errors import CodeError
from nanogrid.execution.code.packing import SKIPPED_NAMES, PackingLimits, pack_file, pack_folder

NAME = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20
).filter(lambda name: name not in {".", "..", *SKIPPED_NAMES} and not name.endswith(".pyc"))
TREE = st.dictionaries(st.tuples(NAME, NAME), st.tuples(st.binary(max_size=400), st.booleans()), min_size=1, max_size=8)


def write_tree(folder: Path, tree: dict[tuple[str, str], tuple[bytes, bool]]) -> None:
    for (parent, name), (data, is_executable) in tree.items():
        path = folder / parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o700 if is_executable else 0o600)


def unpacked(archive: bytes) -> dict[str, tuple[bytes, int]]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {info.filename: (opened.read(info), info.external_attr >> 16) for info in opened.infolist()}


@settings(max_examples=50, deadline=None)  # the disk's speed is not what is tested
@given(tree=TREE)
def test_packed_tree_is_the_tree(tree: dict[tuple[str, str], tuple[bytes, bool]]) -> None:
    """Names, bytes and executable bits come out of the archive as they went in."""
    expected = {
        f"{parent}/{name}": (data, stat.S_IFREG | (0o755 if is_executable else 0o644))
        for (parent, name), (data, is_executable) in tree.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder), tree)
        assert unpacked(pack_folder(Path(folder))) == expected


@settings(max_examples=50, deadline=None)  # the disk's speed is not what is tested
@given(tree=TREE)
def test_same_tree_gives_same_bytes(tree: dict[tuple[str, str], tuple[bytes, bool]]) -> None:
    """Place, order of making and times of the files do not show in the archive."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        kept = {**tree, ("keep", "keep"): (b"", False)}
        write_tree(Path(one), kept)
        write_tree(Path(two), dict(reversed(kept.items())))
        for path in Path(two).rglob("*"):
            os.utime(path, (1, 1))
        assert pack_folder(Path(one)) == pack_folder(Path(two))


def test_archive_bytes_are_pinned(tmp_path: Path) -> None:
    """A change of the packing changes every stored hash, so it has to be made on purpose."""
    (tmp_path / "data.bin").write_bytes(b"")  # nothing to deflate: zlib's version does not matter
    (tmp_path / "empty").mkdir()
    assert (
        hashlib.sha256(pack_folder(tmp_path)).hexdigest()
        == "4706bae332ffeda7762ae05bccdda883b01a5c5ff4044cadf18267a4f1565d31"
    )


@pytest.mark.parametrize(
    "name", [".git/config", "a/__pycache__/x.txt", ".venv/pyvenv.cfg", "a/node_modules/x.js", "a/b.pyc"]
)
def test_clutter_is_left_out(tmp_path: Path, name: str) -> None:
    """Version control, environments and compiled files are not part of the function, at any depth."""
    (tmp_path / "main.py").write_text("print()")
    clutter = tmp_path / name
    clutter.parent.mkdir(parents=True)
    clutter.write_text("clutter")
    assert [packed for packed in unpacked(pack_folder(tmp_path)) if not packed.endswith("/")] == ["main.py"]


def test_empty_folder_is_kept(tmp_path: Path) -> None:
    """A function may count on a folder that holds nothing."""
    (tmp_path / "main.py").write_text("")
    (tmp_path / "out").mkdir()
    assert sorted(unpacked(pack_folder(tmp_path))) == ["main.py", "out/"]


def test_link_inside_is_packed_as_its_content(tmp_path: Path) -> None:
    """Links to files and to folders of the tree become copies."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("a")
    (tmp_path / "b.py").symlink_to("lib/a.py")
    (tmp_path / "lib2").symlink_to("lib")
    files = {name: data for name, (data, _) in unpacked(pack_folder(tmp_path)).items()}
    assert files == {"b.py": b"a", "lib/a.py": b"a", "lib2/a.py": b"a"}


def test_link_out_of_the_tree_is_refused(tmp_path: Path) -> None:
    """No file of the machine gets into a function through a link."""
    folder = tmp_path / "function"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "main.py").symlink_to("../secret")
    with pytest.raises(CodeError, match=r"main\.py is a link to '\.\./secret', outside of the folder"):
        pack_folder(folder)


def test_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    """A folder that holds itself through a link would never end."""
    (tmp_path / "main.py").write_text("")
    (tmp_path / "again").symlink_to(".")
    with pytest.raises(CodeError, match="again is a link to a folder that contains it"):
        pack_folder(tmp_path)


@pytest.mark.parametrize("target", ["nothing", "main.py"])
def test_link_to_nothing_is_refused(tmp_path: Path, target: str) -> None:
    """A dangling link, and one to itself, is named with what it points to."""
    (tmp_path / "main.py").symlink_to(target)
    with pytest.raises(CodeError, match=f"main.py is a link to '{target}', which does not exist"):
        pack_folder(tmp_path)


def test_socket_is_refused(tmp_path: Path) -> None:
    """What is neither file nor folder cannot be packed, and is not opened."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(CodeError, match="s is neither a file nor a folder"):
            pack_folder(tmp_path)


def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    """A named pipe would block whoever opens it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CodeError, match="pipe is neither a file nor a folder"):
        pack_folder(tmp_path)


def test_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Zip names are text; bytes that are none would come out as something else."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.py")).write_text("")
    with pytest.raises(CodeError, match="not UTF-8"):
        pack_folder(tmp_path)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (PackingLimits(entries=2), "more than 2 files"),
        (PackingLimits(unpacked_bytes=2500), "larger than"),
        (PackingLimits(packed_bytes=1500), "the archive is larger than"),
    ],
)
def test_limits_hold(tmp_path: Path, limits: PackingLimits, message: str) -> None:
    """What no worker would accept is refused before it is uploaded."""
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(os.urandom(1000))
    with pytest.raises(CodeError, match=message):
        pack_folder(tmp_path, limits)


def test_limit_of_bytes_is_exact(tmp_path: Path) -> None:
    """Exactly as much as the limit is accepted."""
    (tmp_path / "a.bin").write_bytes(bytes(1000))
    assert pack_folder(tmp_path, PackingLimits(unpacked_bytes=1000))


def test_folder_without_files_is_refused(tmp_path: Path) -> None:
    """There is nothing to run in it."""
    (tmp_path / "sub").mkdir()
    with pytest.raises(CodeError, match="has no files"):
        pack_folder(tmp_path)


def test_very_regular_file_does_not_look_like_a_bomb(tmp_path: Path) -> None:
    """Workers refuse archives that unpack to 200 times their size, so such a file is stored as it is."""
    (tmp_path / "main.py").write_bytes(bytes(4 * 1024 * 1024))
    packed = pack_folder(tmp_path)
    assert 4 * 1024 * 1024 / len(packed) < 100


def test_file_takes_the_name_that_its_runtime_starts(tmp_path: Path) -> None:
    """hello.py runs as main.py, with its executable bit."""
    path = tmp_path / "hello.py"
    path.write_text("print('hi')")
    path.chmod(0o755)
    assert unpacked(pack_file(path, "main.py")) == {"main.py": (b"print('hi')", stat.S_IFREG | 0o755)}


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """One sentence, no traceback."""
    with pytest.raises(CodeError, match=r"gone\.py cannot be read: No such file"):
        pack_file(tmp_path / "gone.py", "main.py")
