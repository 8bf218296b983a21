"""What a run may do to the template and to a kept workspace, and what the next run finds of it: nothing.

Each run executes the Python code that it gets as its input. The function has one small package among its code, with a module of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.runner_box import Box, Run, box, write_code

IMAGES = ("nanogrid/python:3.9", "nanogrid/python:3.13")
WARM_UPS = 4
MAIN = """import json
import os
import sys

import parcel

exec(sys.stdin.read())
"""
PACKAGE = {
    "parcel/__init__.py": "from parcel import inner\n\nTOKEN = inner.TOKEN\n",
    "parcel/inner.py": "TOKEN = 'as shipped'\n",
    "parcel/data/table.bin": "0123456789" * 2000,
    "parcel-1.0.dist-info/RECORD": "parcel/__init__.py,,\nparcel/inner.py,,\nparcel/data/table.bin,,\nparcel-1.0.dist-info/RECORD,,\n",
}
TREE = """
import hashlib
def state(path):
    status = os.lstat(path)
    kept = [oct(status.st_mode), status.st_size, status.st_mtime_ns, status.st_atime_ns, status.st_nlink, os.listxattr(path, follow_symlinks=False)]
    if not os.path.isdir(path):
        kept.append(hashlib.sha256(open(path, 'rb').read()).hexdigest() if not os.path.islink(path) else os.readlink(path))
    return kept
found = {path: state(path) for folder, _, names in os.walk('.') for path in [folder, *(os.path.join(folder, name) for name in names)]}
print(json.dumps(found, sort_keys=True))
"""
PROCESS = """
import resource
print(json.dumps([
    sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0),
    [resource.getrlimit(number) for number in range(16)], sorted(map(int, __import__('signal').pthread_sigmask(0, []))),
]))
"""


@pytest.fixture(scope="module", params=IMAGES, ids=lambda image: image.rpartition(":")[2])
def here(request: pytest.FixtureRequest) -> Iterator[Box]:
    """A container whose function has run often enough to have a template."""
    with TemporaryDirectory() as folder, box(Path(folder), request.param) as made:
        made.replace(write_code(Path(folder) / "function", {"main.py": MAIN, **PACKAGE}))
        for _ in range(WARM_UPS):
            run(made, "print(parcel.TOKEN)")
        yield made


def run(here: Box, code: str) -> Run:
    """Run this code as a function's, in the held interpreter."""
    done = here.run(payload=code.encode())
    assert (done.exit_code, done.how) == (0, "python"), done
    return done


def asked(here: Box, code: str) -> Any:
    """Return the JSON that this code prints."""
    return json.loads(run(here, code).out)


def template_of(here: Box) -> int:
    """Return the pid of the process that the next run is a fork of."""
    return int(asked(here, "print(os.getppid())"))


def test_runs_are_forks_of_one_template(here: Box) -> None:
    """The parent of a run is neither the first process nor another one each time."""
    assert template_of(here) == template_of(here) != 1


@pytest.mark.parametrize("name", ["mem", "environ", "maps", "fd", "io", "stack", "auxv"])
def test_a_run_cannot_read_the_template(here: Box, name: str) -> None:
    """The kernel refuses all of its files that show memory or descriptors."""
    code = f"""
path = '/'.join(['', 'proc', str(os.getppid()), {name!r}])
try:
    found = os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1)
    print(json.dumps('read'))
except OSError as error:
    print(json.dumps(type(error).__name__))
"""
    assert asked(here, code) == "PermissionError"


TOUCHES = {
    "stopped": "os.kill(os.getppid(), signal.SIGSTOP)",
    "stopped and continued": "os.kill(os.getppid(), signal.SIGSTOP); os.kill(os.getppid(), signal.SIGCONT)",
    "killed": "os.kill(os.getppid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getppid(), signal.SIGTERM)",
    "interrupted": "os.kill(os.getppid(), signal.SIGINT)",
    "given pending signals": "[os.kill(os.getppid(), signal.SIGRTMIN + 1) for _ in range(100)]",
    "limited": "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (64, 64))",
    "made nicer": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 7)",
    "bound to one processor": "os.sched_setaffinity(os.getppid(), {min(os.sched_getaffinity(0))})",
    "scheduled as a batch": "os.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0))",
    "killed with all others": "os.kill(-1, signal.SIGKILL)",
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_nothing_done_to_the_template_reaches_the_next_run(here: Box, touch: str) -> None:
    """The next run has the limits, the scheduling and the signal mask that every run has, and the package as shipped."""
    before = asked(here, PROCESS)
    assert asked(here, f"import resource, signal; {touch}; print(json.dumps('done'))") == "done"
    assert asked(here, PROCESS) == before
    assert run(here, "print(parcel.TOKEN)").out == b"as shipped\n"


def test_what_a_run_leaves_running_ends_and_the_next_run_is_as_ever(here: Box) -> None:
    """A process that a run leaves is killed, and the template with it. The next run is a fork of another one."""
    before = template_of(here)
    left = run(here, "import subprocess; subprocess.Popen(['sleep', '60']); print(1)")
    assert left.ended.killed == 1
    run(here, "print(parcel.TOKEN)")
    assert template_of(here) != before


CHANGES = {
    "nothing, only read": "open('parcel/data/table.bin').read(); os.listdir('parcel')",
    "appended to": "open('parcel/inner.py', 'a').write('TOKEN = 1')",
    "written, with its time put back": "s = os.stat('parcel/inner.py'); open('parcel/inner.py', 'r+').write('T'); os.utime('parcel/inner.py', ns=(s.st_atime_ns, s.st_mtime_ns))",
    "written through a mapping that was read first": """
import mmap
file = os.open('parcel/data/table.bin', os.O_RDWR)
data = mmap.mmap(file, 0)
data[0]
data[0:1] = b'X'
""",
    "written by a second name in a new folder": """
import mmap
os.mkdir('new')
os.link('parcel/data/table.bin', 'new/other')
file = os.open('new/other', os.O_RDWR)
data = mmap.mmap(file, 0)
data[0]
data[0:1] = b'X'
os.unlink('new/other')
os.rmdir('new')
""",
    "written, and sent in a message that nobody receives": """
import mmap, socket, array
file = os.open('parcel/data/table.bin', os.O_RDWR)
data = mmap.mmap(file, 0)
data[0]
data[0:1] = b'X'
one, other = socket.socketpair()
one.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [file, one.fileno(), other.fileno()]))])
""",
    "removed": "os.unlink('parcel/inner.py')",
    "replaced by a link": "os.unlink('parcel/inner.py'); os.symlink('/etc/passwd', 'parcel/inner.py')",
    "replaced by a folder": "os.unlink('parcel/inner.py'); os.makedirs('parcel/inner.py/deep/er')",
    "renamed": "os.rename('parcel/inner.py', 'parcel/outer.py')",
    "its folder renamed": "os.rename('parcel', 'carton')",
    "its folder removed": "import shutil; shutil.rmtree('parcel/data')",
    "its folder exchanged": "os.rename('parcel/data', 'parcel/old'); os.mkdir('parcel/data')",
    "its mode changed": "os.chmod('parcel/inner.py', 0o4777); os.chmod('parcel', 0)",
    "an attribute added": "os.setxattr('parcel/inner.py', 'user.note', b'1'); os.setxattr('parcel', 'user.note', b'1')",
    "files added": "open('parcel/new.py', 'w').write('x'); open('new.txt', 'w').write('x'); os.makedirs('a/b'); open('a/b/c', 'w').close()",
    "the top folder changed": "os.chmod('.', 0o711); os.utime('.', (1, 1))",
    "truncated by its path": "os.truncate('parcel/data/table.bin', 3)",
    "its times changed": "os.utime('parcel/data/table.bin', (1, 1)); os.utime('parcel/data', (1, 1))",
    "many files added": "[open('parcel/data/%d' % number, 'w').close() for number in range(9000)]",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_a_run_changes_in_its_code_the_next_run_finds_it_as_shipped(here: Box, change: str) -> None:
    """Contents, names, modes, times, links and attributes of every file and folder are those of before."""
    before = asked(here, TREE)
    run(here, change)
    assert asked(here, TREE) == before
    assert run(here, "print(parcel.TOKEN)").out == b"as shipped\n"


def test_compiled_code_of_a_run_is_never_used(here: Box) -> None:
    """A run that puts other compiled code beside a package's source does not change what a new interpreter imports."""
    other = """
import importlib.util, py_compile
path = importlib.util.cache_from_source('parcel/inner.py')
open('/tmp/other.py', 'w').write("TOKEN = 'changed!!!'\\n")
source = os.stat('parcel/inner.py')
data = bytearray(open(py_compile.compile('/tmp/other.py', '/tmp/other.pyc'), 'rb').read())
data[8:12] = int(source.st_mtime).to_bytes(4, 'little')
data[12:16] = source.st_size.to_bytes(4, 'little')
os.makedirs(os.path.dirname(path), exist_ok=True)
if os.path.exists(path):
    os.unlink(path)
open(path, 'wb').write(data)
"""
    run(here, other)
    fresh = here.run(payload=b"print(parcel.TOKEN)", in_process=False)
    assert (fresh.how, fresh.out) == ("exec", b"as shipped\n")


def test_a_program_that_a_run_starts_finds_the_packages_compiled(here: Box) -> None:
    """Nothing is compiled again, whatever way a program starts."""
    code = """
import subprocess
found = subprocess.run([sys.executable, '-v', '-c', 'import parcel'], stderr=subprocess.PIPE).stderr.decode()
print(json.dumps([found.count('matches') >= 2, 'wrote' in found]))
"""
    assert asked(here, code) == [True, False]


@pytest.mark.parametrize(
    "at_import",
    [
        "TOKEN = __import__('os').urandom(8).hex()",
        "import uuid\nTOKEN = uuid.uuid4().hex",
        "import random\nTOKEN = random.random()",
        "import os\nTOKEN = os.getpid()",
        "import random\nTOKEN = random.Random()",
        "import os\nTOKEN = []\nos.register_at_fork(after_in_child=lambda: TOKEN.append(1))",
    ],
    ids=["urandom", "uuid", "random", "pid", "generator", "at fork"],
)
def test_what_a_package_draws_at_import_is_drawn_in_each_run(tmp_path: Path, at_import: str) -> None:
    """Such a package is not imported in a template: it finds each run's own values, and no fork before it."""
    shows = "print(parcel.TOKEN.random() if hasattr(parcel.TOKEN, 'random') else parcel.TOKEN == os.getpid() or parcel.TOKEN)"
    with box(tmp_path, IMAGES[0]) as made:
        made.replace(
            write_code(tmp_path / "function", {**PACKAGE, "main.py": MAIN, "parcel/inner.py": at_import + "\n"})
        )
        runs = [run(made, shows).out for _ in range(WARM_UPS + 2)]
    if "getpid" in at_import or "at_fork" in at_import:
        assert set(runs) <= {b"True\n", b"[]\n"}
    else:
        assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("also", ["", "os.getpid()\n"], ids=["in a template", "in each spare"])
def test_what_a_package_writes_when_it_is_imported_beforehand_is_removed(tmp_path: Path, also: str) -> None:
    """No run finds a file that an import before its request has left."""
    inner = f"import os\n{also}open('/workspace/parcel/written', 'a').close()\nTOKEN = 'as shipped'\n"
    with box(tmp_path, IMAGES[0]) as made:
        made.replace(write_code(tmp_path / "function", {**PACKAGE, "main.py": MAIN, "parcel/inner.py": inner}))
        for _ in range(WARM_UPS):
            run(made, "print(1)")
        assert asked(made, "print(json.dumps(sorted(set(os.listdir('parcel')) - {'__pycache__'})))") == [
            "__init__.py",
            "data",
            "inner.py",
        ]


def test_io_uring_is_refused(here: Box) -> None:
    """The kernel would close its files some time after the end of a run."""
    code = """
import ctypes
library = ctypes.CDLL(None, use_errno=True)
answer = library.syscall(425, 1, ctypes.create_string_buffer(120))
print(json.dumps([answer, ctypes.get_errno()]))
"""
    assert asked(here, code) == [-1, 1]
