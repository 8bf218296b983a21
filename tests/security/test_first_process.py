"""What the first process of a warm container reads, as the kernel sees it: never anything that a run was given or could write.

Each run is a fork of it, so a later run could find in its own memory whatever the first process had in memory. The rule: everything it does
is traced, during runs of every kind that leave as much as they can and that make it start another interpreter.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.rig import CPP_IMAGE, NEWEST_PYTHON_IMAGE, PYTHON_IMAGE
from tests.support.runner_box import Box, box, write_code
from tests.support.services import wait_until

HANDLER = ("python", "/nanogrid/runner/call_handler.py", "app.handle")
PACKAGES = {"PYTHONPATH": "/nanogrid/packages"}
LEAVE = """
import glob, json, os, site, sys
folder = site.USER_SITE
for name in ('sitecustomize.py', 'usercustomize.py', 'left.pth', 'json.py', 'encodings.py', 'turtle.cfg', 'pyvenv.cfg', 'zone'):
    for place in (folder, '/workspace', '/workspace/lib', '/tmp', '/dev/shm', '/nanogrid/run'):
        os.makedirs(place, exist_ok=True)
        with open(f'{place}/{name}', 'w') as file: file.write('import os')
print(sys.stdin.read())
"""
CODE = {"main.py": LEAVE, "app.py": LEAVE + "\ndef handle(event, context): return [event]\n", "own.py": ""}
SYSTEM_CALLS = (
    "%file,read,pread64,readv,recvfrom,recvmsg,recvmmsg,sendmsg,mmap,getdents64,sendfile,splice,process_vm_readv"
)
READS = ("read", "pread64", "readv", "mmap", "getdents64", "sendfile", "splice")
WRITABLE = re.compile(r"(^|[^\w/]|<)/+(workspace|tmp|dev/shm|nanogrid/run)(/|$|>)")
PATH = re.compile(r'^(?!execve|recv|send|p?read)\w+\((?:[^"(]*, )?"([^"]*)"')
"""The file that a call names. The arguments of a program that is executed are not files yet."""
LOOKS = re.compile(
    r'^(chdir\("/workspace"\)|getcwd\("/workspace"|openat\(AT_FDCWD[^"]*"/nanogrid/run/result\.json", O_RDONLY\|O_NONBLOCK\|O_NOFOLLOW\|O_CLOEXEC\))'
)
"""The only calls that it makes there. It starts an interpreter in the empty workspace, whose name Python asks for, and it opens the
result for the host without reading it."""


@contextmanager
def traced(here: Box, trace: Path) -> Iterator[None]:
    """Write every such system call of the first process, and of no other process, to `trace`."""
    command = ["strace", "-q", "-y", "-s", "200", "-p", str(here.pid), "-e", f"trace={SYSTEM_CALLS}", "-o", str(trace)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        status = Path(f"/proc/{here.pid}/status")
        wait_until(lambda: f"TracerPid:\t{tracer.pid}" in status.read_text(), "the first process is traced")
        try:
            yield
        finally:
            tracer.terminate()
            tracer.wait()


@pytest.mark.parametrize("image", [PYTHON_IMAGE, CPP_IMAGE, NEWEST_PYTHON_IMAGE], ids=["oldest", "middle", "newest"])
def test_what_the_first_process_reads(image: str, tmp_path: Path) -> None:
    """No file in a place that runs write to is read, mapped, listed or executed, and not one byte comes from the host."""
    packages = write_code(
        tmp_path / "packages", {"pack.py": "import os; seen = os.environ.get('MODE')", "x.so": "WORDS"}
    )
    with box(tmp_path, image) as here:
        here.await_ready()
        with traced(here, tmp_path / "trace"):
            here.place(write_code(tmp_path / "code", CODE), packages)
            runs = [
                here.run(payload="given"),
                here.run(payload="given", env={**PACKAGES, "TZ": ":/workspace/zone"}),
                here.run(HANDLER, payload="given", env={"LANG": "de_DE.UTF-8", "HOME": "/tmp"}),
                here.run(HANDLER, payload="given", env={"LANG": "de_DE.UTF-8", "HOME": "/tmp"}),
                here.run(payload="given", env={**PACKAGES, "PYTHONUNBUFFERED": "1", "PLAIN": "1"}),
                here.run(payload="given", env={**PACKAGES, "PYTHONUNBUFFERED": "1", "PLAIN": "1"}),
                here.run(("/bin/sh", "-c", "cp main.py /tmp"), in_process=False),
            ]
            here.await_ready()
        lines = (tmp_path / "trace").read_text().splitlines()
    assert [(run.exit_code, run.err) for run in runs] == [(0, b"")] * len(runs)
    assert {run.how for run in runs} == {"python", "exec"}
    assert sum("/boot/sitecustomize.py" in line and line.startswith("openat") for line in lines) >= 2, (
        "it became no other"
    )
    named = [(path[1], line) for line in lines if (path := PATH.match(line)) and not LOOKS.match(line)]
    assert [line for path, line in named if WRITABLE.search(path)] == []
    assert [line for path, line in named if path and not path.startswith("/")] == []
    assert any(LOOKS.match(line) for line in lines)
    assert [line for line in lines if line.startswith(READS) and WRITABLE.search(line.partition(",")[0])] == []
    # Its connection to the host is the one over which it reports ends.
    told = {line[len("sendmsg(") :].partition("<")[0] for line in lines if re.match(r'sendmsg\(.*"ended ', line)}
    assert len(told) == 1
    assert [
        line for line in lines if line.startswith("recv") and line.partition("(")[2].partition("<")[0] in told
    ] == []
    assert any(line.startswith("recv") for line in lines)
