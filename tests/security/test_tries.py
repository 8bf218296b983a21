"""What a reviewer tried against the next run, the first process and the host, and what came of it.

The rule: harmless marks only, and each test says in one sentence what is right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogrid.container.report import Ended
from nanogrid.result import Outcome
from tests.security.traces import FORK, Traced
from tests.support.rig import NEWEST_PYTHON_IMAGE, PYTHON_IMAGE, Rig
from tests.support.rig import rig as open_rig
from tests.support.runner_box import write_code


@pytest.fixture(scope="module", params=[PYTHON_IMAGE, NEWEST_PYTHON_IMAGE], ids=["oldest", "newest"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A container owner that the tests of this module share, for the oldest and the newest Python."""
    with open_rig(tmp_path_factory.mktemp("rig"), python_image=request.param, pool_containers=8) as here:
        yield here


# -- what a run teaches

LEAVE_A_PATH = """
steps = "".join("./" if bit == "1" else "/" for byte in {text!r} for bit in format(byte, "08b"))
file = os.open("/nanogrid/run/.lesson", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
os.write(file, b"o /workspace/" + steps.encode() + b"main.py")
os._exit(0)
"""
LOOK_FOR_PATHS = """
memory = os.open(f"/proc/{kept}/mem", os.O_RDONLY)
found = set()
for start, end, _ in spans(kept):
    for path in re.findall(b"/workspace/([./]{40,})main", attempt(os.pread, memory, end - start, start) or b""):
        bits = path.replace(b"./", b"1").replace(b"/", b"0").decode()
        found.add(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).decode("latin-1"))
say(found=sorted(found))
"""


def test_a_path_with_detours_is_no_lesson(rig: Rig) -> None:
    """Of a file's many names only the plain one is learned: which one a run has chosen is nowhere in the next run."""
    function = Traced(rig, FORK)
    for number in range(2):
        function.run(LEAVE_A_PATH.format(text=b"marker %d" % number))
        assert function.ask(LOOK_FOR_PATHS) == {"found": []}


# -- descriptors

OPEN = """
links = [attempt(os.readlink, f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
say(memory=[link for link in links if link.startswith("/memfd:")], seen=getattr(sys.modules.get("pack"), "SEEN", None))
"""
PACKAGE = """
import os
SEEN = []
for number in os.listdir("/proc/self/fd"):
    try:
        SEEN.append(os.readlink(f"/proc/self/fd/{number}"))
    except OSError:  # that of the list itself
        pass
"""


def test_a_run_has_no_memory_file_of_the_first_process(rig: Rig, tmp_path: Path) -> None:
    """What the first process keeps for all runs in memory files is open in none of them: to write there is to tell the next run."""
    layer = write_code(tmp_path / "packages", {"pack.py": PACKAGE, "compiled.so": "WORDS"})
    function = Traced(rig, FORK, packages=layer)
    for number in range(5):
        assert function.ask("import pack\n" + OPEN, env={"PLAIN": str(number)})["memory"] == []


def test_a_package_imported_beforehand_has_no_descriptor_of_the_first_process(rig: Rig, tmp_path: Path) -> None:
    """Its standard streams, and all else that is open, are the spare's own: nothing that is said there is there for the next."""
    layer = write_code(tmp_path / "packages", {"pack.py": PACKAGE, "compiled.so": "WORDS"})
    function = Traced(rig, FORK, packages=layer)
    seen = [function.ask("import pack\n" + OPEN, env={"PLAIN": str(number)})["seen"] for number in range(5)]
    assert [links for links in seen[3:] if set(links) != {"/memfd:silent (deleted)"}] == []


# -- processes

TRACER = """
LIBC.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # some systems let nobody trace who was not asked
traced, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.write(told, b"%d" % LIBC.ptrace(0x4206, os.getppid(), 0, 0))
    time.sleep(600)
print(os.read(traced, 8).decode(), flush=True)
os._exit(7)
"""


def test_a_run_whose_end_somebody_else_waits_for(rig: Rig) -> None:
    """A run that is traced by a process of its own ends when it ends, though the kernel tells the tracer first."""
    function = Traced(rig, FORK)
    function.run("pass")
    began = time.monotonic()
    run = function.attempt(TRACER, timeout_s=5)
    assert (run.report.ended, run.report.exit_code, run.out) == (Ended.EXITED, 7, "0\n")
    assert time.monotonic() - began < 5
    assert function.outcome is Outcome.FAILED
    function.run("pass")
