"""A bare run inside the image: `python3 main.py` started there as a plain process, with no `docker exec` around it.

The rule: the clock is in the container too, from before the process is started to its output being complete, as for the
bare runs of the host. A helper waits at a socket for the word to run once.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.docker_runs import connect, create, options
from benchmarks.programs import Program
from nanogrid.settings import Settings

MEETING = "/meeting"
WAIT_S = 30.0

HELPER = """
import json, socket, subprocess, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1] + "/socket")
server.listen()
link, _ = server.accept()
pipe = subprocess.PIPE
for _ in link.makefile():
    begin = time.perf_counter()
    run = subprocess.Popen(["python3", "main.py"], stdin=pipe, stdout=pipe, stderr=pipe, close_fds=False)
    out, err = run.communicate(b"null")
    took_ms = (time.perf_counter() - begin) * 1000
    answer = {"ms": took_ms, "code": run.returncode, "out": out.decode(), "err": err.decode()[-500:]}
    link.sendall(json.dumps(answer).encode() + b"\\n")
"""


class BareInImage:
    """One bare run in the container, in its own milliseconds. Raises RuntimeError if the output is wrong."""

    def __init__(self, link: socket.socket, program: Program) -> None:
        self._link, self._file, self._prints = link, link.makefile(), program.prints

    def __call__(self) -> float:
        """One run."""
        self._link.sendall(b"run\n")
        answer = json.loads(self._file.readline())
        if answer["code"] != 0 or answer["out"] != self._prints:
            raise RuntimeError(f"the bare run in the image failed: {answer}")
        return float(answer["ms"])


@contextmanager
def bare_in_image(settings: Settings, program: Program, folder: Path, meeting: Path) -> Iterator[BareInImage]:
    """A container that runs the program in `folder` on request, until the block ends. `meeting` is a new folder for its socket."""
    meeting.mkdir(parents=True)
    meeting.chmod(0o777)  # the container's user makes the socket
    body = options(settings.python_image, ["python3", "-c", HELPER, MEETING], folder, settings)
    body["HostConfig"]["Binds"].append(f"{meeting}:{MEETING}:rw")
    body["Env"] = ["HOME=/tmp", "LANG=C.UTF-8"]
    api = connect(settings)
    with closing(api):
        made = create(api, body)
        try:
            api.start(made)
            with closing(_reach(meeting / "socket")) as link:
                yield BareInImage(link, program)
        finally:
            api.remove_container(made, force=True)


def _reach(path: Path) -> socket.socket:
    deadline = time.monotonic() + WAIT_S
    link = socket.socket(socket.AF_UNIX)
    while True:
        try:
            link.connect(str(path))
        except OSError:
            if time.monotonic() > deadline:
                link.close()
                raise
            time.sleep(0.01)
        else:
            return link
