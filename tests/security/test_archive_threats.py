"""Archives made to harm: each is refused with its own sentence, and nothing is written outside the folder."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib
from pathlib import Path

import pytest

from nanogrid.errors import CodeCorruptError
from nanogrid.execution.code.archive import unpack
from nanogrid.execution.code.limits import ArchiveLimits

LIMITS = ArchiveLimits(unpacked_bytes=8 * 1024 * 1024, entries=50, ratio=200)
OUTSIDE = "outside.txt"


def refusal(folder: Path, body: bytes, limits: ArchiveLimits = LIMITS) -> str:
    """The sentence with which an archive is refused. Fails when anything beside its folder was touched."""
    (folder / OUTSIDE).write_text("untouched")
    archive, tree = folder / "archive", folder / "tree"
    archive.write_bytes(body)
    tree.mkdir()
    with pytest.raises(CodeCorruptError) as caught:
        unpack(archive, tree, limits)
    assert sorted(path.name for path in folder.iterdir()) == ["archive", OUTSIDE, "tree"]
    assert (folder / OUTSIDE).read_text() == "untouched"
    return str(caught.value)


def zip_with(*entries: tuple[str, bytes, int]) -> bytes:
    """A zip of (name, content, Unix mode) as they stand, even twice the same name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo("x" * len(name))
            info.filename = name
            info.external_attr, info.create_system = mode << 16, 3
            archive.NameToInfo.clear()
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def tar_with(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """A tar of headers, or of (name, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def header(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A tar header without content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777

BAD_NAMES = {
    "../outside.txt": "contains '..'",
    "a/../../outside.txt": "contains '..'",
    "a/..": "contains '..'",
    "/etc/passwd": "is an absolute path",
    "C:/windows": "drive letter",
    "c:evil": "drive letter",
    "..\\outside.txt": "contains a backslash",
    "a\\b": "contains a backslash",
    "line\nbreak": "control character",
    "escape\x1b[2J": "control character",
    "c1\x9b": "control character",
    "n" * 256: "more than 255 bytes",
    "ä" * 128: "more than 255 bytes",
    "/".join(["n" * 100] * 25): "more than 2048 bytes",
    "/".join("n" * 101): "more than 100 folders deep",
}


@pytest.mark.parametrize("pack", ["zip", "tar"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_zip_slip_and_unusable_names(tmp_path: Path, name: str, pack: str) -> None:
    """A name that leads out of the folder, or that no folder should hold, is refused."""
    body = zip_with((name, b"x", FILE)) if pack == "zip" else tar_with((name, b"x"))
    assert BAD_NAMES[name] in refusal(tmp_path, body)


def test_nul_in_a_zip_name(tmp_path: Path) -> None:
    """A name that Python would cut at a NUL byte is refused, not cut."""
    body = zip_with(("main.pyX.txt", b"x", FILE)).replace(b"main.pyX.txt", b"main.py\0.txt")
    assert "NUL byte" in refusal(tmp_path, body)


def test_nul_in_a_pax_name(tmp_path: Path) -> None:
    """A NUL byte that a pax header brings into a name is refused."""
    info = tarfile.TarInfo("main.py")
    info.pax_headers = {"path": "main.py\0.txt"}
    assert "control character" in refusal(tmp_path, tar_with(info))


def test_undecodable_names(tmp_path: Path) -> None:
    """Names that are no UTF-8 are refused in both formats."""
    (tmp_path / "tar").mkdir()
    (tmp_path / "zip").mkdir()
    assert "not valid UTF-8" in refusal(tmp_path / "tar", tar_with(("caf\udce9.py", b"x")))
    body = zip_with(("cafée.py", b"x", FILE)).replace("cafée.py".encode(), b"caf\xff\xfee.py")
    assert "damaged" in refusal(tmp_path / "zip", body)


def test_an_empty_name(tmp_path: Path) -> None:
    """An entry without a name is refused."""
    assert "has no name" in refusal(tmp_path, zip_with(("", b"x", FILE)))


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    """An entry that would replace the function's folder itself is refused."""
    link = header("./", tarfile.SYMTYPE, "main.py")
    assert "instead of the function's folder" in refusal(tmp_path, tar_with(("main.py", b""), link))


LEAVING = ["../outside.txt", "a/../../outside.txt", "lib/up/../../outside.txt"]


@pytest.mark.parametrize("target", LEAVING)
@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_symbolic_links_out_of_the_tree(tmp_path: Path, target: str, pack: str) -> None:
    """A link that ends outside is refused, also when another link on its way makes the difference."""
    if pack == "zip":
        body = zip_with(("a/x", b"", FILE), ("lib/up", b"..", LINK), ("evil", target.encode(), LINK))
    else:
        up = header("lib/up", tarfile.SYMTYPE, "..")
        body = tar_with(("a/x", b""), up, header("evil", tarfile.SYMTYPE, target))
    assert "out of the function's folder" in refusal(tmp_path, body)


def test_absolute_symbolic_link(tmp_path: Path) -> None:
    """A link to an absolute path is refused, even one that does not exist."""
    assert "absolute path '/etc/passwd'" in refusal(tmp_path, tar_with(header("evil", tarfile.SYMTYPE, "/etc/passwd")))


def test_writing_through_a_symbolic_link(tmp_path: Path) -> None:
    """A file below a link of the same archive is refused before anything is written through the link."""
    body = tar_with(header("dir", tarfile.SYMTYPE, ".."), ("dir/outside.txt", b"overwritten"))
    assert "clashes: 'dir' is a symbolic link and a folder" in refusal(tmp_path, body)


def test_overwriting_a_symbolic_link(tmp_path: Path) -> None:
    """A file of the same name as a link is refused before it is written to where the link points."""
    body = tar_with(header("x", tarfile.SYMTYPE, "../outside.txt"), ("x", b"overwritten"))
    assert "already has a symbolic link of this name" in refusal(tmp_path, body)


def test_dangling_symbolic_link(tmp_path: Path) -> None:
    """A link to nothing is refused: nobody can say where it would end later."""
    assert "is not in the archive" in refusal(
        tmp_path, tar_with(("main.py", b""), header("x", tarfile.SYMTYPE, "nope"))
    )


@pytest.mark.parametrize("loop", [("a", "a"), ("a", "b"), ("a", "./b/c")])
def test_symbolic_link_loop(tmp_path: Path, loop: tuple[str, str]) -> None:
    """Links that lead to each other are refused and do not keep the worker busy."""
    first, second = loop
    links = [header("a", tarfile.SYMTYPE, second), header("b", tarfile.SYMTYPE, first)]
    assert "never ends" in refusal(tmp_path, tar_with(("main.py", b""), *links))


@pytest.mark.parametrize("target", ["../outside.txt", "/etc/passwd", "later.txt", "folder", "evil"])
def test_hard_links_to_anything_but_a_file_before(tmp_path: Path, target: str) -> None:
    """A hard link may only name a file that the same archive brought before."""
    body = tar_with(header("folder", tarfile.DIRTYPE), header("evil", tarfile.LNKTYPE, target), ("later.txt", b""))
    message = refusal(tmp_path, body)
    assert any(part in message for part in ("contains '..'", "absolute path", "not an earlier file"))


def test_hard_link_to_a_symbolic_link(tmp_path: Path) -> None:
    """A hard link to a link is refused."""
    body = tar_with(("f", b""), header("l", tarfile.SYMTYPE, "f"), header("evil", tarfile.LNKTYPE, "l"))
    assert "not an earlier file" in refusal(tmp_path, body)


TAR_SPECIALS = {tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device", tarfile.FIFOTYPE: "fifo", b"Z": "type b'Z'"}
ZIP_SPECIALS = {stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}


@pytest.mark.parametrize("kind", TAR_SPECIALS)
def test_devices_and_fifos_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    """Device files, fifos and unknown types are refused."""
    message = refusal(
        tmp_path, tar_with(header("special", kind)) if kind != b"Z" else _retyped(tar_with(("special", b"")))
    )
    assert TAR_SPECIALS[kind] in message


def _retyped(body: bytes) -> bytes:
    """The same tar, its first entry of type Z."""
    block = bytearray(body[:512])
    block[156:157] = b"Z"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + body[512:]


@pytest.mark.parametrize("kind", ZIP_SPECIALS)
def test_devices_fifos_and_sockets_in_a_zip(tmp_path: Path, kind: int) -> None:
    """Device files, fifos and sockets by their Unix mode are refused."""
    assert ZIP_SPECIALS[kind] in refusal(tmp_path, zip_with(("special", b"", kind | 0o666)))


def test_setuid_does_not_survive(tmp_path: Path) -> None:
    """Set-user-id, set-group-id and sticky bits are dropped."""
    (tmp_path / "archive").write_bytes(zip_with(("tool", b"", stat.S_IFREG | 0o7777)))
    (tmp_path / "tree").mkdir()
    unpack(tmp_path / "archive", tmp_path / "tree", LIMITS)
    assert stat.S_IMODE((tmp_path / "tree/tool").stat().st_mode) == 0o555


@pytest.mark.parametrize("pack", ["zip", "tar"])
@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("./a", "a"), ("a//b", "a/b")])
def test_clashing_names(tmp_path: Path, first: str, second: str, pack: str) -> None:
    """Two entries that want the same place are refused: no guess about which one is meant."""
    pair = [(first, b"1"), (second, b"2")]
    body = tar_with(*pair) if pack == "tar" else zip_with(*((name, content, FILE) for name, content in pair))
    assert "clashes" in refusal(tmp_path, body)


def test_names_that_differ_in_case_do_not_clash(tmp_path: Path) -> None:
    """On Linux `A` and `a` are two files."""
    (tmp_path / "archive").write_bytes(zip_with(("a", b"1", FILE), ("A", b"2", FILE)))
    (tmp_path / "tree").mkdir()
    unpack(tmp_path / "archive", tmp_path / "tree", LIMITS)
    assert (tmp_path / "tree/a").read_bytes() + (tmp_path / "tree/A").read_bytes() == b"12"


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_bomb_by_count(tmp_path: Path, pack: str) -> None:
    """More files than allowed are refused at the first one too many."""
    many = [(f"{number}", b"") for number in range(51)]
    body = tar_with(*many) if pack == "tar" else zip_with(*((name, b"", FILE) for name, _ in many))
    assert refusal(tmp_path, body).startswith("archive entry '50' is one more than the limit of 50 files")
    assert len(list((tmp_path / "tree").iterdir())) == 50


def test_bomb_by_implied_folders(tmp_path: Path) -> None:
    """Folders that only names imply count as well."""
    body = zip_with(*((f"{number}/a/b/c/d/e/f/g/h/i/x", b"", FILE) for number in range(6)))
    assert "more than the limit of 50 files and folders" in refusal(tmp_path, body)


def test_bomb_by_directory_size(tmp_path: Path) -> None:
    """A zip directory of far too many entries is refused before it is taken into memory."""
    body = zip_with(*((f"{number:04}" + "n" * 100, b"", FILE) for number in range(1200)))
    assert "headers take more than" in refusal(tmp_path, body)


BOMB = bytes(9 * 1024 * 1024)
NO_RATIO = ArchiveLimits(unpacked_bytes=8 * 1024 * 1024, entries=50, ratio=10**9)
BOMBS = {
    "zip": lambda content: zip_with(("bomb", content, FILE)),
    "tar.gz": lambda content: gzip.compress(tar_with(("bomb", content))),
    "tar.bz2": lambda content: bz2.compress(tar_with(("bomb", content))),
    "tar.xz": lambda content: lzma.compress(tar_with(("bomb", content))),
}


@pytest.mark.parametrize("pack", BOMBS)
def test_bomb_by_size(tmp_path: Path, pack: str) -> None:
    """Content over the size limit is refused when the limit is reached, not after all of it was written."""
    assert "archive entry 'bomb' brings the unpacked size over the limit of 8 MiB" in refusal(
        tmp_path, BOMBS[pack](BOMB), NO_RATIO
    )
    assert (tmp_path / "tree/bomb").stat().st_size <= NO_RATIO.unpacked_bytes


@pytest.mark.parametrize("pack", BOMBS)
def test_bomb_by_ratio(tmp_path: Path, pack: str) -> None:
    """Content that grows by more than the allowed ratio is refused long before the size limit."""
    assert "over 200 times the packed size" in refusal(tmp_path, BOMBS[pack](bytes(4 * 1024 * 1024)))


def test_a_small_file_may_shrink_by_any_ratio(tmp_path: Path) -> None:
    """The ratio is no matter below 1 MiB."""
    (tmp_path / "archive").write_bytes(BOMBS["tar.bz2"](bytes(1024 * 1024 - 20_480)))
    (tmp_path / "tree").mkdir()
    assert unpack(tmp_path / "archive", tmp_path / "tree", LIMITS).entries == 1


def test_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    """A zip that claims a small size for a large content does not get more than it claims, and is refused."""
    body = bytearray(zip_with(("bomb", bytes(900_000), FILE)))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = body.index(signature) + offset
        body[at : at + 4] = struct.pack("<L", 10)
    assert "damaged" in refusal(tmp_path, bytes(body))
    assert (tmp_path / "tree/bomb").stat().st_size <= 10


def overlapping(quoted: int = 10) -> bytes:
    """A zip whose directory names one compressed block under many names."""
    content = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = content.compress(bytes(90_000)) + content.flush()
    sizes = struct.pack("<LLL", zlib.crc32(bytes(90_000)), len(data), 90_000)
    body = struct.pack("<4s5H", b"PK\x03\x04", 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", 1, 0) + b"a" + data
    directory = b"".join(
        struct.pack("<4s6H", b"PK\x01\x02", 20, 20, 0, 8, 0, 33)
        + sizes
        + struct.pack("<5H2L", 1, 0, 0, 0, 0, 0, 0)
        + b"a"
        for _ in range(quoted)
    )
    return body + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, quoted, quoted, len(directory), len(body), 0)


def test_bomb_by_overlap(tmp_path: Path) -> None:
    """Entries that share their bytes are refused before anything is unpacked."""
    assert "overlaps with 'a': such archives are refused as bombs" in refusal(tmp_path, overlapping())
    assert list((tmp_path / "tree").iterdir()) == []


def test_entry_that_reaches_into_the_directory(tmp_path: Path) -> None:
    """An entry that claims bytes of the zip's directory is refused."""
    body = bytearray(zip_with(("a", b"x" * 50, FILE)))
    at = body.index(b"PK\x01\x02") + 20
    body[at : at + 4] = struct.pack("<L", 1000)
    assert "overlaps with the archive's directory" in refusal(tmp_path, bytes(body))


def test_encrypted_zip(tmp_path: Path) -> None:
    """An encrypted entry is refused as such."""
    body = bytearray(zip_with(("secret", b"x", FILE)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        body[body.index(signature) + offset] |= 1
    assert "is encrypted: pack without a password" in refusal(tmp_path, bytes(body))


@pytest.mark.parametrize(("method", "name"), [(12, "bzip2"), (14, "LZMA"), (99, "number 99")])
def test_unsupported_compression(tmp_path: Path, method: int, name: str) -> None:
    """A compression that is not accepted in a zip is named."""
    body = bytearray(zip_with(("x", b"x", FILE)))
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = body.index(signature) + offset
        body[at : at + 2] = struct.pack("<H", method)
    assert f"compression method {name}: accepted in a zip are" in refusal(tmp_path, bytes(body))


def test_wrong_crc(tmp_path: Path) -> None:
    """Content that does not fit its checksum is refused."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("main.py", "print('hello')")
    assert "'main.py' is damaged or cut off (Bad CRC-32" in refusal(
        tmp_path, buffer.getvalue().replace(b"hello", b"jello")
    )


def test_directory_and_contents_that_disagree(tmp_path: Path) -> None:
    """A zip whose two lists of names differ is refused: readers would disagree about what is in it."""
    body = zip_with(("main.py", b"x", FILE)).replace(b"main.py", b"evil.py", 1)
    assert "'main.py' is damaged" in refusal(tmp_path, body)


def test_zip_that_hides_entries(tmp_path: Path) -> None:
    """A zip whose end counts fewer entries than its directory has is refused."""
    body = bytearray(zip_with(("a", b"", FILE), ("b", b"", FILE)))
    body[-12] = body[-14] = 1
    assert "its end says 1 entries, its directory has 2" in refusal(tmp_path, bytes(body))


def test_sparse_tar(tmp_path: Path) -> None:
    """A sparse file, a terabyte in one block, is refused."""
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40)}
    assert "is a sparse file" in refusal(tmp_path, tar_with(info))


def test_negative_size_in_a_tar(tmp_path: Path) -> None:
    """A header that points backwards is refused and does not loop."""
    info = tarfile.TarInfo("x")
    info.size = -1024
    block = info.tobuf(tarfile.GNU_FORMAT)
    assert "negative size" in refusal(tmp_path, tar_with(("a", b"x" * 600))[:-10240] + block + bytes(1024))


MEMORY_ATTACKS = {
    "a pax header of a gigabyte": """
        import tarfile
        header = tarfile.TarInfo("x"); header.type = tarfile.XHDTYPE; header.size = 2**30
        with open(path, "wb") as file:
            file.write(header.tobuf())
            file.truncate(2**30 + 10240)
        """,
    "an xz that asks for 4 GiB of dictionary": """
        import lzma
        with lzma.open(path, "wb", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]) as file:
            file.write(bytes(2000))
        body = bytearray(open(path, "rb").read())
        assert body[16] == 16, body[:24]       # dictionary of 1 MiB in the block header
        body[16] = 40                          # 4 GiB - 1
        import zlib
        size = (body[12] + 1) * 4
        body[12 + size - 4 : 12 + size] = zlib.crc32(body[12 : 12 + size - 4]).to_bytes(4, "little")
        open(path, "wb").write(body)
        """,
    "a zip directory that claims to be a gigabyte": """
        import struct
        with open(path, "wb") as file:
            file.write(b"PK\\x03\\x04" + bytes(30))
            file.truncate(2**30 + 34)
            file.seek(2**30 + 34)
            file.write(struct.pack("<4s4H2LH", b"PK\\x05\\x06", 0, 0, 9, 9, 2**30, 34, 0))
        """,
}


@pytest.mark.parametrize("attack", MEMORY_ATTACKS)
def test_memory_attack(tmp_path: Path, attack: str) -> None:
    """Headers that ask for gigabytes are refused by a process that has 300 MiB."""
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from nanogrid.execution.code.archive import unpack
        from nanogrid.execution.code.limits import ArchiveLimits
        from nanogrid.errors import CodeCorruptError
        path, tree = Path(sys.argv[1]), Path(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_DATA, (300 * 2**20, 300 * 2**20))
        try:
            unpack(path, tree, ArchiveLimits(unpacked_bytes=2**29, entries=10_000, ratio=10**9))
        except CodeCorruptError as error:
            print(error)
        """
    )
    archive, tree = tmp_path / "archive", tmp_path / "tree"
    tree.mkdir()
    prepare = f"path = {str(archive)!r}\n" + textwrap.dedent(MEMORY_ATTACKS[attack])
    subprocess.run([sys.executable, "-c", prepare], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", script, str(archive), str(tree)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "headers take more than" in done.stdout or "emory usage limit" in done.stdout
