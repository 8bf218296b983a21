"""Archives that are fine unpack exactly; archives that are broken are refused; there is no third outcome."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from nanogrid.errors import CodeCorruptError
from nanogrid.execution.code.archive import unpack
from nanogrid.execution.code.limits import ArchiveLimits
from nanogrid.execution.code.required import HandlerModule, check_required
from nanogrid.execution.code.tree import FIXED_TIME_NS, remove_tree

LIMITS = ArchiveLimits(unpacked_bytes=8 * 1024 * 1024, entries=200, ratio=200)

Files = dict[str, tuple[bytes, bool]]
"""Path → content and executable bit."""


def zip_of(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, (content, executable) in files.items():
            info = zipfile.ZipInfo(name, (1990, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
            archive.writestr(info, content, method)
    return buffer.getvalue()


def tar_of(files: Files, layout: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for name, (content, executable) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if executable else 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Files], bytes]] = {
    "zip": zip_of,
    "zip stored": lambda files: zip_of(files, zipfile.ZIP_STORED),
    "tar": tar_of,
    "tar gnu": lambda files: tar_of(files, tarfile.GNU_FORMAT),
    "tar.gz": lambda files: gzip.compress(tar_of(files)),
    "tar.bz2": lambda files: bz2.compress(tar_of(files)),
    "tar.xz": lambda files: lzma.compress(tar_of(files)),
}
CHECKED_FORMATS = ("zip", "zip stored", "tar.gz", "tar.bz2", "tar.xz")
"""Formats with a checksum over the contents; a plain tar has none."""


@contextmanager
def unpacked(body: bytes, limits: ArchiveLimits = LIMITS) -> Iterator[Path]:
    """The unpacked archive. Fails when anything was written beside its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tree"
        folder.mkdir()
        archive = Path(name) / "archive"
        archive.write_bytes(body)
        try:
            unpack(archive, folder, limits)
            yield folder
        finally:
            assert {path.name for path in Path(name).iterdir()} == {"archive", "tree"}
            remove_tree(folder)


def content_of(folder: Path) -> dict[str, bytes]:
    """All regular files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


names = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\:"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@st.composite
def trees(draw: st.DrawFn) -> Files:
    """Files that can exist side by side."""
    files: Files = draw(
        st.dictionaries(paths, st.tuples(st.binary(max_size=2000), st.booleans()), min_size=1, max_size=8)
    )
    for path in files:
        assume(not any(other.startswith(f"{path}/") for other in files))
    return files


@pytest.mark.parametrize("layout", FORMATS)
@given(files=trees())
@settings(max_examples=20, deadline=None)
def test_any_tree_comes_back_as_it_was(layout: str, files: Files) -> None:
    """Whatever was packed comes out with the same names, bytes and executable bits, read-only."""
    with unpacked(FORMATS[layout](files)) as folder:
        assert content_of(folder) == {name: content for name, (content, _) in files.items()}
        for name, (_, executable) in files.items():
            assert stat.S_IMODE((folder / name).stat().st_mode) == (0o555 if executable else 0o444)


SAMPLE: Files = {
    "main.py": (b"print('hello')\n" * 40, False),
    "run.sh": (b"#!/bin/sh\n", True),
    "lib/größe.py": (random.Random(1).randbytes(700), False),
    "lib/deep/er/empty": (b"", False),
}
SAMPLE_CONTENT = {name: content for name, (content, _) in SAMPLE.items()}


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Ways to spoil an archive: cut, overwrite, insert, remove, repeat."""
    kind = draw(st.sampled_from(["cut", "overwrite", "insert", "remove", "repeat"]))
    where, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    junk = draw(st.binary(min_size=1, max_size=40))

    def damage(body: bytes) -> bytes:
        at = int(where * (len(body) - 1))
        pieces = {
            "cut": (body[:at],),
            "overwrite": (body[:at], junk, body[at + len(junk) :]),
            "insert": (body[:at], junk, body[at:]),
            "remove": (body[:at], body[at + length :]),
            "repeat": (body[: at + length], body[at:]),
        }
        return b"".join(pieces[kind])

    return damage


@pytest.mark.parametrize("layout", FORMATS)
@given(damage=st.lists(damages(), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_archive_unpacks_to_the_same_or_is_refused(
    layout: str, damage: list[Callable[[bytes], bytes]]
) -> None:
    """Damage ends in CodeCorruptError or did not matter; nothing else is raised and nothing is written elsewhere."""
    body = FORMATS[layout](SAMPLE)
    for spoil in damage:
        body = spoil(body)
    try:
        with unpacked(body) as folder:
            event("unpacked")
            if layout in CHECKED_FORMATS:
                for name, content in content_of(folder).items():
                    assert SAMPLE_CONTENT.get(name, content) == content
    except CodeCorruptError:
        event("refused")


@pytest.mark.parametrize("layout", FORMATS)
def test_every_truncation_is_noticed(layout: str) -> None:
    """Cut off at any length, an archive is refused, unless only a tar's padding is missing."""
    body = FORMATS[layout](SAMPLE)
    lengths = {*range(0, len(body), len(body) // 40), *range(len(body) - 25, len(body))}
    for length in sorted(lengths):
        try:
            with unpacked(body[:length]) as folder:
                assert layout.startswith("tar")
                assert content_of(folder) == SAMPLE_CONTENT
        except CodeCorruptError:
            pass


@given(body=st.one_of(st.binary(max_size=3000), st.binary(max_size=600).map(gzip.compress)))
@settings(max_examples=80, deadline=None)
def test_arbitrary_bytes_are_refused(body: bytes) -> None:
    """Bytes that are no archive are refused with one error."""
    with pytest.raises(CodeCorruptError), unpacked(body):
        pass


def test_the_result_is_sealed() -> None:
    """Folders are 0555, links are kept as they were, and everything carries the same time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("./lib/libx.so.1"))
        link = tarfile.TarInfo("./lib/libx.so")
        link.type, link.linkname = tarfile.SYMTYPE, "../lib/libx.so.1"
        archive.addfile(link)
        again = tarfile.TarInfo("./again")
        again.type, again.linkname, again.mode = tarfile.LNKTYPE, "./lib/libx.so.1", 0o6777
        archive.addfile(again)
    with unpacked(buffer.getvalue()) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / "lib").stat().st_mode) == 0o555
        assert (folder / "lib/libx.so").readlink() == Path("../lib/libx.so.1")
        assert (folder / "again").samefile(folder / "lib/libx.so")
        assert stat.S_IMODE((folder / "again").stat().st_mode) == 0o444
        assert {path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))} == {FIXED_TIME_NS}
        assert {path.lstat().st_uid for path in folder.rglob("*")} == {os.geteuid()}


def test_folder_entries_in_any_order_and_repeated_are_fine() -> None:
    """A folder may be listed before, after or between its files, and as the root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("./", "./a/", "./a/b", "./a", "./c/"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.REGTYPE if name == "./a/b" else tarfile.DIRTYPE
            archive.addfile(info)
    with unpacked(buffer.getvalue()) as folder:
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["a", "a/b", "c"]


def test_a_zip_made_on_macos_keeps_its_names() -> None:
    """UTF-8 names without the flag for them, as macOS' Finder writes, are read as UTF-8."""
    body = zip_of({"grün.py": (b"x", False)}).replace("grün.py".encode(), b"gr\xc3\xbcn.py")
    flagless = bytearray(body)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = flagless.index(signature) + offset
        assert flagless[at + 1] == 0x08
        flagless[at + 1] = 0
    with unpacked(bytes(flagless)) as folder:
        assert list(content_of(folder)) == ["grün.py"]


def test_xz_in_several_streams_with_padding_is_read_as_one() -> None:
    """Archives of pixz and of `cat a.xz b.xz` are whole archives."""
    body = tar_of(SAMPLE)
    with unpacked(lzma.compress(body[:700]) + bytes(8) + lzma.compress(body[700:]) + bytes(4)) as folder:
        assert content_of(folder) == SAMPLE_CONTENT


def test_exactly_at_the_limits_is_accepted() -> None:
    """Limits are the largest accepted values, not the first refused ones."""
    files: Files = {f"{number}": (bytes(1024), False) for number in range(10)}
    limits = ArchiveLimits(unpacked_bytes=10 * 1024, entries=10, ratio=1)
    with unpacked(zip_of(files), limits) as folder:
        assert len(content_of(folder)) == 10


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the object is empty"),
        (
            b"print('hello')\n",
            r"not an archive, it starts with 'print\('hello'\)|not an archive, it starts with \"print",
        ),
        (b"<html>", "accepted are zip, and tar"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "not an archive"),
        (gzip.compress(b"print('hello')\n" * 100), "compressed but contains no tar"),
        (zip_of({}), "the archive is empty"),
        (tar_of({}), "the archive is empty"),
        (gzip.compress(tar_of({})), "the archive is empty"),
        (tar_of(SAMPLE) + tar_of(SAMPLE), "data after its end mark"),
    ],
    ids=["nothing", "script", "html", "zstd", "gzipped script", "empty zip", "empty tar", "empty tar.gz", "two tars"],
)
def test_what_is_no_usable_archive_is_named(body: bytes, problem: str) -> None:
    """The error says what the object is instead."""
    with pytest.raises(CodeCorruptError, match=problem), unpacked(body):
        pass


def test_a_zip_of_the_folder_is_told_also_with_other_things_beside_it() -> None:
    """Tools leave folders of their own, and people a README."""
    files = {"app/main.py": (b"", False), "__MACOSX/x": (b"", False), ".git/c": (b"", False), "README.md": (b"", False)}
    with (
        unpacked(zip_of(files)) as folder,
        pytest.raises(CodeCorruptError, match="in the folder 'app/': pack the folder's content"),
    ):
        check_required(folder, "main.py")


def test_a_zip_of_the_folder_is_told_from_a_missing_file() -> None:
    """Packing the folder instead of its content is the common mistake, and the error says just that."""
    with unpacked(zip_of({"app/main.py": (b"", False)})) as folder:
        with pytest.raises(CodeCorruptError, match="in the folder 'app/': pack the folder's content"):
            check_required(folder, "main.py")
        with pytest.raises(CodeCorruptError, match=r"run\.sh is missing .* which has 'app/': add it"):
            check_required(folder, "run.sh")
        check_required(folder, "app/main.py")


@pytest.mark.parametrize(
    ("handler", "file"),
    [
        ("app.run", "app.py"),
        ("app.run", "app/__init__.py"),
        ("app.run", "app.cpython-39-x86_64-linux-gnu.so"),
        ("my-app/send.run", "my-app/send.py"),
        ("a.b.c.run", "a/b/c.py"),
        ("installed.run", "requirements.txt"),
        ("made.run", "build.sh"),
    ],
)
def test_a_handlers_module_is_found_in_each_of_its_forms(handler: str, file: str) -> None:
    """A file, a package, a compiled module, or what is there once packages are installed and the code is built."""
    with unpacked(zip_of({file: (b"", False)})) as folder:
        check_required(folder, HandlerModule.of(handler))


def test_a_handlers_module_is_missed_as_a_file_is() -> None:
    """Also in an archive of the folder."""
    with unpacked(zip_of({"app/todos/get.py": (b"", False)})) as folder:
        with pytest.raises(
            CodeCorruptError, match=r"todos\.py \(or a package 'todos'\).*in the folder 'app/': pack the"
        ):
            check_required(folder, HandlerModule.of("todos/get.run"))
        with pytest.raises(CodeCorruptError, match=r"other\.py .* is missing .* which has 'app/'"):
            check_required(folder, HandlerModule.of("other.run"))
