"""Decisions of the programs in a warm container: what a word in a source means, what may be held, what may be learned."""

from __future__ import annotations

import ast
import itertools
import marshal
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanogrid.execution.runner.programs import INSIDE, OLDEST_PYTHON
from tests.differential.corpus import SUBJECTS, read

PROGRAMS = sorted(path for path in INSIDE.rglob("*.py"))


@pytest.fixture
def inside() -> Iterator[None]:
    """Makes the programs importable, as in a container, and removes them afterwards."""
    sys.path.insert(0, str(INSIDE))
    before = set(sys.modules)
    yield
    sys.path.remove(str(INSIDE))
    for name in set(sys.modules) - before:
        del sys.modules[name]


def module(name: str) -> ModuleType:
    """Import one of the runner's modules."""
    return __import__(f"nanogrid_warm.{name}", fromlist=["x"])


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_is_valid_for_the_oldest_python(path: Path) -> None:
    """The image's Python may be as old as 3.9."""
    ast.parse(path.read_text(), feature_version=OLDEST_PYTHON)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_no_program_imports_nanogrid(path: Path) -> None:
    """There is no NanoGrid in the container."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "nanogrid"
        if isinstance(node, ast.Import):
            assert "nanogrid" not in {alias.name.partition(".")[0] for alias in node.names}


@pytest.mark.parametrize(
    ("source", "introspects", "uses_ctypes"),
    [
        ("print('hello')", False, False),
        ("import math; math.gcd(1, 2)", False, False),
        ("proc = 5  # process", False, False),
        ("import gc", True, False),
        ("from gc import collect", True, False),
        ("open('/proc/self/status')", True, False),
        ("class A:\n    def __del__(self): pass", True, False),
        ("import resource; resource.getrusage(0)", True, False),
        ("print(ArithmeticError.__subclasses__())", True, False),
        ("from concurrent import interpreters", True, False),
        ("import subclasses, interpreter", False, False),
        ("import ctypes", False, True),
    ],
)
def test_words_in_a_source_decide_how_it_runs(
    source: str, introspects: bool, uses_ctypes: bool, tmp_path: Path, inside: None
) -> None:
    """Whole words count, wherever they are. Parts of words do not."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.py").write_text(source)
    scan = module("source_scan").SourceScan()
    scan.folder(bytes(tmp_path))
    assert (scan.introspects, scan.uses_ctypes) == (introspects, uses_ctypes)


def test_what_is_no_python_source_is_not_scanned(tmp_path: Path, inside: None) -> None:
    """Data may hold any word."""
    (tmp_path / "data.txt").write_text("import gc /proc")
    scan = module("source_scan").SourceScan()
    scan.folder(bytes(tmp_path))
    assert not scan.introspects


OWN = {"PATH": "/bin", "LC_ALL": "x/y", "PYTHONSTARTUP": "/image/start"}
"""A container's own environment, which its image decides."""


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, {}),
        ({"A": "1", "HOME": "/tmp", "TZ": ":/workspace/zone"}, {}),
        ({"PYTHONUNBUFFERED": "secret", "PYTHONDONTWRITEBYTECODE": ""}, {"PYTHONUNBUFFERED": "1"}),
        ({"LC_TIME": "de_DE.UTF-8", "LANG": "C"}, {"LC_TIME": "de_DE.UTF-8", "LANG": "C"}),
        ({"PYTHONIOENCODING": "latin-1:replace"}, {"PYTHONIOENCODING": "latin-1:replace"}),
        ({"PYTHONHASHSEED": "0"}, {"PYTHONHASHSEED": "0"}),
        ({"PYTHONHASHSEED": "4294967295"}, {"PYTHONHASHSEED": "4294967295"}),
        ({"PYTHONHASHSEED": "secret"}, None),
        ({"PYTHONHASHSEED": "12345678901"}, None),
        ({"PYTHONIOENCODING": "secret"}, None),
        ({"PYTHONPATH": "/workspace/lib"}, None),
        ({"PYTHONPATH": "/nanogrid/packages"}, {}),
        ({"PYTHONSTARTUP": "x"}, None),
        ({"PYTHONUSERBASE": "/workspace"}, None),
        ({"PYTHONPYCACHEPREFIX": "/tmp"}, None),
        ({"LD_PRELOAD": "/workspace/x.so"}, None),
        ({"OPENSSL_CONF": "/workspace/x"}, None),
        ({"LOCPATH": "/workspace"}, None),
        ({"LC_ALL": "/workspace/x"}, None),
        ({"LANG": "../../workspace/x"}, None),
        ({"LANG": "secretsecret"}, None),
        ({"LC_SECRET": "C"}, None),
    ],
)
def test_no_variable_lets_the_first_process_load_what_a_run_has_chosen(
    changes: dict[str, str], held: dict[str, str] | None, inside: None
) -> None:
    """It starts with the container's own startup variables, and with those that a run may choose, by few names and values."""
    reexec = module("reexec")
    expected = None if held is None else {**reexec.startup_variables(OWN), **held}
    assert reexec.startup_variables_for({**OWN, **changes}, OWN) == expected


@pytest.mark.parametrize(
    ("name", "value", "safe"),
    [
        ("PYTHONPATH", "/opt/lib:/usr/lib/x", True),
        ("PYTHONPATH", "/opt/lib:", False),
        ("PYTHONPATH", "lib", False),
        ("PYTHONPATH", "/opt/../workspace", False),
        ("PYTHONPATH", "/workspace/lib", False),
        ("PYTHONPATH", "//tmp//x", False),
        ("PYTHONHOME", "/opt/python", True),
        ("PYTHONUSERBASE", "/tmp", False),
        ("PYTHONPYCACHEPREFIX", "/dev/shm/cache", False),
        ("LD_PRELOAD", "/usr/lib/jemalloc.so", True),
        ("LD_PRELOAD", "jemalloc.so", False),
        ("LD_LIBRARY_PATH", "/proc/self/cwd", False),
        ("LD_BIND_NOW", "1", True),
        ("PYTHON_GET_PIP_URL", "https://example.org/pip.py", True),
        ("PYTHON_VERSION", "3.9.2", True),
        ("LANG", "C.UTF-8", True),
    ],
)
def test_an_image_cannot_have_the_first_process_look_where_runs_write(
    name: str, value: str, safe: bool, inside: None
) -> None:
    """Variables of the image that lead to such places are left out, and then every run gets a new interpreter."""
    assert module("reexec").safe_startup_variables({"PATH": "/bin", name: value}) == ({name: value} if safe else {})


def test_only_what_is_fixed_at_the_start_is_special(inside: None) -> None:
    """A function's own variables, and our own path of packages, need no other interpreter."""
    reexec = module("reexec")
    packages = module("paths").PACKAGES
    assert reexec.startup_variables({"A": "1", "LANG": "C", "LANGUAGE": "de", "PYTHONPATH": packages}) == {"LANG": "C"}
    assert reexec.startup_variables({"PYTHONPATH": "/other"}) == {"PYTHONPATH": "/other"}


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/workspace/a.py", True),
        ("/workspace/p/a.py", True),
        ("/workspace/../etc/a.py", False),
        ("/workspace/./a.py", False),
        ("/workspace//a.py", False),
        ("/etc/a.py", False),
        ("/workspace/a.so", False),
    ],
)
def test_only_sources_of_the_function_are_compiled(path: str, own: bool, inside: None) -> None:
    """A path that a run names is compiled only if it is in the run's own folder."""
    assert module("import_report").is_own_source(path) is own


@pytest.mark.parametrize("name", ["os; x", "", "a..b", "json.__main__", "x" * 300, "1a"])
def test_what_is_no_module_name_is_not_learned(name: str, inside: None) -> None:
    """An import report comes from the function."""
    assert not module("import_report")._is_name(name)


def test_the_standard_library_is_told_from_everything_else(inside: None) -> None:
    """The first process imports nothing else."""
    report = module("import_report")
    assert report.is_standard("json.decoder")
    assert report.is_standard("_socket")
    assert not report.is_standard("pytest")
    assert not report.is_standard("no_such_module")


def test_pages_are_told_that_a_process_has_for_itself(inside: None) -> None:
    """The process's own memory is found, and populating it changes nothing. The spans do not overlap, and have gaps between them."""
    memory, kernel = module("memory"), module("kernel")
    regions = memory.writable_regions()
    runs = memory.unshared_pages(regions)
    assert runs
    assert all(size > 0 and address % memory.PAGE == 0 for address, size in runs)
    assert all(any(start <= address < end for start, end in regions) for address, _ in runs)
    assert all(sum(one) < other[0] for one, other in itertools.pairwise(runs))
    kernel.populate([kernel.populate_arguments(*run) for run in runs[:10]])


def test_an_import_report_names_what_is_really_there(
    inside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run can write any words into its report. Only names of modules in the image, the layer and the code are passed on."""
    report, paths = module("import_report"), module("paths")
    for file in ("code/own.py", "packages/layer/part.py", "packages/fast.cpython-39.so", "packages/space/deep/x.py"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for folder in ("code", "packages"):
        (tmp_path / folder / "round").symlink_to(".")
    monkeypatch.setattr(paths, "CODE", str(tmp_path / "code"))
    monkeypatch.setattr(report, "PACKAGES", f"{tmp_path}/packages/")
    known = [
        "o /workspace/own.py",
        "s json.decoder",
        "s _socket",
        "b layer",
        "b layer.part",
        "b fast",
        "b space.deep",
        "b json",
        "h own",
    ]
    made_up = [
        "o /workspace/secret.py",
        "o /workspace/../x.py",
        "s json.secret",
        "s secret",
        "b secret",
        "b layer.secret",
        "h secret",
        "h json",
    ]
    made_up += [
        "o /workspace/round/own.py",
        "o /workspace/./own.py",
        "b round.layer",
        "b round.round.fast",
        "h round.own",
    ]
    made_up += [
        "x y",
        "",
        "s",
        "s a b",
        "s json\0",
        "b ..",
        "h ..",
        "h /workspace/own",
        "p layer",
        "o /etc/passwd",
        "s site",
        "secret",
    ]
    assert [line for line in known if not report._is_valid(*line.partition(" ")[::2])] == []
    assert [line for line in made_up if report._is_valid(*line.partition(" ")[::2])] == []


def test_what_packages_have_read_decides_who_may_have_them(inside: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that differs matters if it was read. If all were read, every variable but our own matters."""

    monkeypatch.setenv("MODE", "own")
    for look, missed, met in (
        (lambda: os.environ.get("MODE"), ["OTHER", "NANOGRID_REQUEST_ID"], ["MODE"]),
        (lambda: "NANOGRID_X" in os.environ, ["MODE"], ["NANOGRID_X"]),
        (lambda: os.environb[b"MODE"], ["OTHER"], ["MODE"]),
        (lambda: dict(os.environ), ["NANOGRID_X"], ["MODE"]),
        (lambda: os.environ.copy(), ["NANOGRID_X"], ["NEW"]),
    ):
        reads = module("packages").EnvironmentReads()
        reads.start()
        look()
        reads.stop()
        os.environ.get("OTHER")
        assert all(reads.include_none_of([name]) for name in missed)
        assert not any(reads.include_none_of([name]) for name in met)


def test_packets_carry_descriptors_both_ways(inside: None) -> None:
    """What is sent arrives, with new descriptors. The end of the connection is an empty packet."""

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


def test_words_are_heard_without_what_is_beside_them(inside: None) -> None:
    """Descriptors that come with a word to the first process are closed before it receives them."""

    channel = module("channel")
    here, there = channel.pair()
    reader, writer = os.pipe()
    assert channel.send(here, b"ready", [writer])
    os.close(writer)
    assert channel.receive_bytes(there) == b"ready"
    assert os.read(reader, 1) == b""
    os.close(reader)
    here.close()
    assert channel.receive_bytes(there) == b""
    there.close()


def test_the_corpus_holds_hundreds_of_programs_with_names_of_their_own() -> None:
    """The differential test is as large as it claims."""
    names = [(subject, program.name) for subject in SUBJECTS for program in read(subject)]
    assert len(names) == len(set(names))
    assert len(names) > 400


STATE: dict[str, Any] = {
    "command": ["python", "main.py"],
    "environment": {"PATH": "/bin", "LANG": "C"},
    "faithful": True,
    "filtered": True,
    "sockets": 1,
    "first_command": ["python", "main.py"],
    "gid": 1,
    "host_descriptor": 3,
    "learn_imports": True,
    "own_network": True,
    "own_sources": ["/workspace/a.py"],
    "reexecs": 2,
    "rehearsed": False,
    "scan": (True, False),
    "standard_modules": ["json"],
    "startup_variables": {"LANG": "C"},
    "stream_types": (1, 2, 3),
    "uid": 1,
}


def test_the_state_survives_an_exec(inside: None) -> None:
    """Every field comes back from the memory file, after the modules, in the order in which the held interpreter reads them."""
    reexec = module("reexec")
    with os.fdopen(reexec._write_memory_file(reexec.State(**STATE)), "rb") as file:
        programs, fields = marshal.load(file), marshal.load(file)
    assert {"nanogrid_warm", "nanogrid_warm.serve", "nanogrid_warm.spare"} <= set(programs)
    assert vars(reexec.State(**fields)) == STATE


@pytest.mark.parametrize("field", STATE)
def test_a_state_without_a_field_is_refused(field: str, inside: None) -> None:
    """A field that is missing on one side of the exec is an error, and so is an unknown one."""
    reexec = module("reexec")
    fields = {name: value for name, value in STATE.items() if name != field}
    with pytest.raises(TypeError, match=field):
        reexec.State(**fields)
    with pytest.raises(TypeError, match="other"):
        reexec.State(**STATE, other=1)


def test_nothing_learned_survives_a_change_of_the_code(inside: None) -> None:
    """The state for other code is that of a new container, except for what never changes."""
    reexec = module("reexec")
    changed = reexec.State(**{**STATE, "command": ["python", "other.py"]}).for_new_code()
    initial = reexec.initial_fields(["python", "main.py"], STATE["environment"])
    assert vars(changed) == {**STATE, **initial, "reexecs": 1, "rehearsed": True}


@pytest.mark.parametrize("state", ["nonsense", "1000000"])
def test_an_interpreter_that_cannot_be_held_says_why(state: str) -> None:
    """It ends, because it is root and would run the function's script. It reports the reason on stderr."""
    environment = {"PYTHONPATH": str(INSIDE / "boot"), "NANOGRID_RUNNER": state}
    ended = subprocess.run([sys.executable, "-c", "print('ran')"], env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (70, b"")
    assert ended.stderr.startswith(b"nanogrid: the interpreter could not be held for its run: ")


def test_a_run_whose_process_fails_says_why(inside: None) -> None:
    """An error between the request and the function's first line is on the run's stderr."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from nanogrid_warm import serve, spare\n"
        "def fail(*_): raise ValueError('no such luck')\n"
        "spare.run_spare = fail\n"
        "class Connections:\n    class spare_end:\n        fileno = staticmethod(lambda: -1)\n"
        "server = serve.Server.__new__(serve.Server)\n"
        "server.rehearsed, server.held = True, None\n"
        "server._be_child(Connections)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(INSIDE)], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (70, b"")
    assert ended.stderr == b"nanogrid: the run's process failed before the function's code: no such luck\n"


@pytest.mark.parametrize(
    ("source", "declarative"),
    [
        ("import os, sys as s\nfrom json import *\nfrom csv import reader as r", True),
        ("A = -1\nB = {'a': [1, (2, A)], **{}}\nC = A * 60 + 1\nD = 'x' + 'y'", True),
        ("A: int = 5\nB: dict[str, int] = {}", True),
        ("def f(a: 'x' = 3, *b, c=None) -> list[int]: return g()\nh = lambda: f()\nasync def i(): await f()", True),
        ("class A:\n    x: int = 1\n    def __init__(self): f()\nclass B(ValueError): pass", True),
        ("from enum import Enum\nclass A(Enum):\n    X = 1\n    Y = 2", True),
        ("try:\n    import a\nexcept (ImportError, OSError) as error:\n    a = None", True),
        ("import sys\nif sys.version_info >= (3, 9):\n    import a\nelse:\n    import b", True),
        ("def main(): pass\nif __name__ == '__main__':\n    main()\nimport a", True),
        ("import pack\ndef f(a: pack.A, b: pack.B['x']) -> 'pack.C': pass", True),
        ("f()", False),
        ("import os\nos.environ['A'] = 'b'", False),
        ("import os\nos.a = 1", False),
        ("import os\ndel os.a", False),
        ("import sys\na = sys.path\na += ['b']", False),
        ("for a in b: pass", False),
        ("while a: pass", False),
        ("with a: pass", False),
        ("[a for a in b]", False),
        ("a = f'{b}'", False),
        ("assert a", False),
        ("class A(B): pass", False),
        ("class A(metaclass=B): pass", False),
        ("@a\nclass A: pass", False),
        ("@a\ndef f(): pass", False),
        ("class A:\n    f()", False),
        ("class A:\n    def __class_getitem__(cls, key): f()", False),
        ("def __getattr__(name): f()", False),
        ("def f(a=g()): pass", False),
        ("ValueError = B\nclass A(ValueError): pass", False),
        ("try:\n    import a\nexcept ImportError:\n    f()\nimport b", False),
        ("import os\nif os.environ['A'] == 'b':\n    import c", False),
        ("import pack\na = pack.b == []", False),
        ("import pack\na = [*pack.b]", False),
        ("import pack\na = pack.b[0]", False),
        ("if __name__ != '__main__':\n    f()", False),
        ("if __name__ == 'other':\n    f()", False),
        ("__name__ = 'other'", False),
        ("__path__ = ['other']", False),
    ],
)
def test_a_beginning_is_nothing_but_imports_and_definitions(source: str, declarative: bool, inside: None) -> None:
    """Anything that could change what a package finds, or notice what a package has done, ends the prologue."""
    assert module("prologue").is_declarative(compile(source, "x", "exec")) is declarative
