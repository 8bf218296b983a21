"""How the compiler cache reads a command line, a list of headers and the mounts; and its store."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogrid.execution.runner.inside.compiler_command import parse
from nanogrid.execution.runner.inside.compiler_inputs import Root, UnclearError, digest
from nanogrid.execution.runner.inside.compiler_record import facts, headers
from nanogrid.execution.runner.inside.compiler_store import Store

MOUNTS = "1 0 0:1 / / {} - overlay overlay ro\n2 1 0:2 / /work\\040space rw - tmpfs tmpfs rw\n"


@pytest.mark.parametrize(
    ("line", "outputs", "binaries"),
    [
        ("main.cpp", ["a.out"], ["a.out"]),
        ("main.cpp -o main", ["main"], ["main"]),
        ("-omain main.cpp util.cpp -O2 -Wall -std=c++20", ["main"], ["main"]),
        ("-c src/a.c src/b.c", ["a.o", "b.o"], ["a.o", "b.o"]),
        ("-c src/a.c -o build/a.o", ["build/a.o"], ["build/a.o"]),
        ("-S a.c", ["a.s"], []),
        ("-E a.c -o a.i", ["a.i"], []),
        ("-MMD -MP -c src/a.cpp -o build/x.obj", ["build/x.obj", "build/x.d"], ["build/x.obj"]),
        ("-MD -MF deps -MT x -c a.cpp", ["a.o", "deps"], ["a.o"]),
        ("a.o libb.a libc.so.1.2 -lm -Llib -o main", ["main"], ["main"]),
        ("a.cpp -Wl,-rpath,lib -Wl,--as-needed -o main", ["main"], ["main"]),
    ],
)
def test_outputs_are_known(line: str, outputs: list[str], binaries: list[str]) -> None:
    """A command that is understood names what it writes, and which of it are binaries."""
    command = parse(line.split())
    assert command is not None
    assert (command.outputs, command.binaries) == (outputs, binaries)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--version",
        "-v main.cpp",
        "-dumpversion",
        "-print-search-dirs",
        "-",
        "-x c++ main.cpp",
        "@options main.cpp",
        "main.s",
        "main.h",
        "main.cpp -o",
        "main.cpp -o a -o b",
        "-c a.c b.c -o both.o",
        "-c a/x.c b/x.c",
        "-c -S a.c",
        "-E a.c",
        "-S a.c -o -",
        "-M a.c",
        "-MM a.c",
        "-MF deps -c a.c",
        "-MD a.c b.c -c",
        "-MD a.c -o main",
        "-c a.o",
        "a.c -o a.c",
        "-save-temps a.c",
        "--coverage a.c",
        "-fprofile-generate a.c",
        "-fprofile-use=x a.c",
        "-ftest-coverage a.c",
        "-fplugin=x.so a.c",
        "-fmodules-ts a.cpp",
        "-fdump-tree-all a.c",
        "-fsyntax-only a.c",
        "-fstack-usage a.c",
        "-fuse-ld=gold a.c",
        "-gsplit-dwarf a.c",
        "-specs=x a.c",
        "-B. a.c",
        "-T script a.c",
        "-Wa,-al a.c",
        "-Wp,-MD,x a.c",
        "-Wl,-T,script a.c",
        "-Wl,-Map=map a.c",
        "-Wl,-rpath a.c",
        "-Xlinker -Map a.c",
        "-l:any.a a.c",
        "-I- a.c",
        "-I=x a.c",
        "--sysroot=x a.c",
        "-isysroot x a.c",
        "-wrapper x a.c",
    ],
)
def test_what_is_not_understood_is_refused(line: str) -> None:
    """A command with an argument of unknown effect, or without an output to keep, goes to the real compiler."""
    assert parse(line.split()) is None


def test_folders_that_are_searched_are_known() -> None:
    """Every folder that an option adds to the search for headers or libraries is found, joined or apart."""
    command = parse(
        ["-Ia", "-I", "b", "-isystem", "c", "-iquoted", "-Le", "-L", "f", "-Wl,-rpath=g:$ORIGIN", "h/libx.so", "m.c"]
    )
    assert command is not None
    assert command.include_folders == ["a", "b", "c", "d"]
    assert command.library_folders == ["e", "f", "g", "h/"]


def test_listing_names_the_same_inputs_and_writes_nothing() -> None:
    """If the command writes a list of its own, a second command that only preprocesses writes the whole list."""
    command = parse(["-MMD", "-MF", "d", "-O2", "-Ia", "-c", "m.c", "-o", "m.o"])
    assert command is not None
    assert command.listing == ["-O2", "-I", "a", "m.c", "-E", "-o", "/dev/null"]


def test_lists_of_headers_are_read() -> None:
    """Spaces, dollars and continued lines of make's syntax become plain paths. There must be one list per source."""
    text = "a.o: /usr/include/stdio.h \\\n inc\\ a/a$$b.h\nb.o: x.h\n"
    assert headers(text, 2) == ["/usr/include/stdio.h", "inc a/a$b.h", "x.h"]
    with pytest.raises(UnclearError):
        headers(text, 3)


def test_only_a_read_only_root_is_fixed() -> None:
    """A path is fixed if the root is mounted read-only and no other mount is above the path."""
    root = Root(MOUNTS.format("ro,relatime"))
    assert root.holds("/usr/include/stdio.h")
    assert not root.holds("/work space/main.cpp")
    assert root.holds("/work space 2/main.cpp")
    assert not Root(MOUNTS.format("rw,relatime")).holds("/usr/include/stdio.h")


@pytest.mark.parametrize(
    "text",
    [
        "const char *when = __TIME__;",
        'asm(".incbin \\"data\\"");',
        "#define has(x) __has_include(x)\n#if has(<a>)\n#endif",
        '#pragma GCC dependency "a"',
        '#include "../../a.h"',
    ],
)
def test_doubtful_sources_are_not_kept(tmp_path: Path, text: str) -> None:
    """A source whose result depends on the clock, or on a file that no list has, is not kept."""
    source = tmp_path / "main.cpp"
    source.write_text(text)
    command = parse([str(source)])
    assert command is not None
    with pytest.raises(UnclearError):
        facts(command, Root(""), [], {})


def test_state_follows_files_and_names_that_might_be_found(tmp_path: Path) -> None:
    """The state changes with a source and with a header that would be found first; not with any other file."""
    source = tmp_path / "main.cpp"
    source.write_text('#include <map>\n#if __has_include("maybe.h")\n#endif')
    command = parse([str(source), "-I", str(tmp_path / "inc")])
    assert command is not None
    found = facts(command, Root(""), [], {})
    states = [digest("k", found)]
    (tmp_path / "inc").mkdir()
    (tmp_path / "other.h").touch()
    assert digest("k", found) == states[0]
    for path in (tmp_path / "inc" / "map", tmp_path / "maybe.h", tmp_path / "inc" / "map.gch"):
        path.touch()
        states.append(digest("k", found))
    source.write_text("int main() {}")
    states.append(digest("k", found))
    assert len(set(states)) == len(states)


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    """Only regular files are read: reading another file could wait forever."""
    with pytest.raises(UnclearError):
        digest("k", (("file", "/dev/null", ()),))


def test_store_gives_back_what_is_whole(tmp_path: Path) -> None:
    """A stored value is returned equal. A damaged or shortened file counts as absent."""
    tmp_path.chmod(0o700)
    store = Store(str(tmp_path))
    assert store.usable()
    value = (b"\x00\xff" * 100, [("x", True)])
    store.put("a", value)
    assert store.get("a") == value
    file = tmp_path / "a"
    whole = file.read_bytes()
    for damaged in (b"", whole[:10], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        assert store.get("a") is None
    assert store.get("b") is None


def test_store_of_others_is_not_used(tmp_path: Path) -> None:
    """A folder that others may write to, or that is missing, is not used."""
    tmp_path.chmod(0o770)
    assert not Store(str(tmp_path)).usable()
    assert not Store(str(tmp_path / "missing")).usable()
