"""The programs of a warm container, as far as they are plain decisions: what a word in a source means, and what may be held."""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from nanogrid.runner.programs import INSIDE, OLDEST_PYTHON
from tests.differential.corpus import SUBJECTS, read

PROGRAMS = sorted(path for path in INSIDE.rglob("*.py"))


@pytest.fixture
def inside() -> Iterator[None]:
    """The programs can be imported, as in a container, and are gone afterwards."""
    sys.path.insert(0, str(INSIDE))
    before = set(sys.modules)
    yield
    sys.path.remove(str(INSIDE))
    for name in set(sys.modules) - before:
        del sys.modules[name]


def module(name: str) -> ModuleType:
    """One of the runner's modules."""
    return __import__(f"nanogrid_warm.{name}", fromlist=["x"])


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_is_valid_for_the_oldest_python(path: Path) -> None:
    """The image's Python may be as old as 3.9."""
    ast.parse(path.read_text(), feature_version=OLDEST_PYTHON)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_no_program_imports_nanogrid(path: Path) -> None:
    """In the container there is no NanoGrid."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "nanogrid"
        if isinstance(node, ast.Import):
            assert "nanogrid" not in {alias.name.partition(".")[0] for alias in node.names}


@pytest.mark.parametrize(
    ("source", "curious", "ctypes"),
    [
        ("print('hello')", False, False),
        ("import math; math.gcd(1, 2)", False, False),
        ("proc = 5  # process", False, False),
        ("import gc", True, False),
        ("from gc import collect", True, False),
        ("open('/proc/self/status')", True, False),
        ("class A:\n    def __del__(self): pass", True, False),
        ("import resource; resource.getrusage(0)", True, False),
        ("import ctypes", False, True),
    ],
)
def test_words_in_a_source_decide_how_it_runs(
    source: str, curious: bool, ctypes: bool, tmp_path: Path, inside: None
) -> None:
    """Whole words count, wherever they stand; parts of words do not."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.py").write_text(source)
    scan = module("source").Scan()
    scan.folder(bytes(tmp_path))
    assert (scan.curious, scan.ctypes) == (curious, ctypes)


def test_what_is_no_python_source_is_not_scanned(tmp_path: Path, inside: None) -> None:
    """Data may hold any word."""
    (tmp_path / "data.txt").write_text("import gc /proc")
    scan = module("source").Scan()
    scan.folder(bytes(tmp_path))
    assert not scan.curious


@pytest.mark.parametrize(
    ("wanted", "may"),
    [
        ({"HOME": "/workspace"}, True),
        ({"HOME": "/workspace", "PYTHONUNBUFFERED": "1"}, True),
        ({"HOME": "/workspace", "LC_ALL": "de_DE.UTF-8", "TZ": "Europe/Berlin"}, True),
        ({"HOME": "/tmp"}, False),
        ({"HOME": "/workspace", "PYTHONPATH": "/workspace/lib"}, False),
        ({"HOME": "/workspace", "PYTHONSTARTUP": "x"}, False),
        ({"HOME": "/workspace", "LD_PRELOAD": "/workspace/x.so"}, False),
        ({"HOME": "/workspace", "OPENSSL_CONF": "/workspace/x"}, False),
        ({"HOME": "/workspace", "LC_ALL": "$(x)"}, False),
    ],
)
def test_no_variable_lets_the_first_process_load_the_functions_code(
    wanted: dict[str, str], may: bool, inside: None
) -> None:
    """It is root in its container: names of files and folders that a function chose are never set for it."""
    assert module("begin").may_hold({"HOME": "/workspace", "PATH": "/bin"}, wanted) is may


def test_only_what_is_fixed_at_the_start_is_special(inside: None) -> None:
    """A function's own variables, and our own path of packages, need no other interpreter."""
    begin = module("begin")
    assert begin.special({"A": "1", "LANG": "C", "PYTHONPATH": begin.PACKAGES}) == {"LANG": "C"}
    assert begin.special({"PYTHONPATH": "/other"}) == {"PYTHONPATH": "/other"}


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/workspace/a.py", True),
        ("/workspace/p/a.py", True),
        ("/workspace/../etc/a.py", False),
        ("/etc/a.py", False),
        ("/workspace/a.so", False),
    ],
)
def test_only_sources_of_the_function_are_compiled(path: str, own: bool, inside: None) -> None:
    """What a run names is compiled only where it lies in its own folder."""
    assert module("bytecode").Bytecode().learn([path]) is own


@pytest.mark.parametrize("name", ["os; x", "", "a..b", "json.__main__", "x" * 300, "1a"])
def test_what_is_no_module_name_is_not_learned(name: str, inside: None) -> None:
    """A lesson comes from the function."""
    assert not module("lesson")._is_name(name)


def test_the_standard_library_is_told_from_everything_else(inside: None) -> None:
    """The first process imports nothing else."""
    lesson = module("lesson")
    assert lesson.is_standard("json.decoder")
    assert lesson.is_standard("_socket")
    assert not lesson.is_standard("pytest")
    assert not lesson.is_standard("no_such_module")


def test_pages_are_told_that_a_process_has_for_itself(inside: None) -> None:
    """The process's own memory is found, and taking it changes nothing; spans do not overlap, and have gaps between them."""
    memory, kernel = module("memory"), module("kernel")
    regions = memory.regions()
    runs = memory.written(regions)
    assert runs
    assert all(size > 0 and address % memory.PAGE == 0 for address, size in runs)
    assert all(any(start <= address < end for start, end in regions) for address, _ in runs)
    assert all(sum(one) < other[0] for one, other in itertools.pairwise(runs))
    kernel.populate([kernel.populating(*run) for run in runs[:10]])


def test_nothing_of_a_packet_stays_in_the_buffer(inside: None) -> None:
    """A spare inherits the first process's memory: what the request before was is not in it."""
    channel = module("channel")
    here, there = channel.pair()
    with closing(here), closing(there):
        channel.send(here, b"secret")
        assert channel.receive(there) == (b"secret", [])
        assert not any(channel._BUFFER)


def test_packets_carry_descriptors_both_ways(inside: None) -> None:
    """What is sent arrives, with descriptors that are new; the end of the connection is an empty packet."""
    import os

    channel = module("channel")
    here, there = channel.pair()
    reader, writer = os.pipe()
    assert channel.send(here, b"words", [reader, writer])
    packet, descriptors = channel.receive(there)
    assert packet == b"words"
    assert len(descriptors) == 2
    os.write(descriptors[1], b"x")
    assert os.read(reader, 1) == b"x"
    for descriptor in (reader, writer, *descriptors):
        os.close(descriptor)
    here.close()
    assert channel.receive(there) == (b"", [])
    assert channel.send(there, b"late") is False
    there.close()


def test_the_corpus_holds_hundreds_of_programs_with_names_of_their_own() -> None:
    """The differential test is as large as it claims."""
    names = [(subject, program.name) for subject in SUBJECTS for program in read(subject)]
    assert len(names) == len(set(names))
    assert len(names) > 400
