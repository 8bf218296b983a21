"""The user that functions run as, seen from inside: it has a name, a group and a home, in every image and however it was started."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from nanogrid.result import StartKind
from tests.support.repeated import Repeated, await_states
from tests.support.rig import PYTHON_IMAGE, Rig
from tests.support.rig import rig as open_rig

PYTHON = """
import getpass, grp, os, pwd
os.environ.pop("HOME")
me = pwd.getpwuid(os.getuid())
print(getpass.getuser() == me.pw_name, me.pw_gid == os.getgid(), me.pw_dir, me.pw_shell)
print(os.path.expanduser("~"), os.path.expanduser("~" + me.pw_name), grp.getgrgid(os.getgid()).gr_gid == os.getgid())
print(pwd.getpwnam("root").pw_uid, os.access("/etc/passwd", os.W_OK), os.access("/etc/group", os.W_OK))
"""
PYTHON_SAYS = "True True /workspace /bin/sh\n/workspace /workspace True\n0 False False\n"

CPP = """
#include <cstdio>
#include <grp.h>
#include <pwd.h>
#include <unistd.h>
int main() {
    const passwd *me = getpwuid(getuid());
    if (me == nullptr) return std::puts("nobody knows me"), 1;
    std::printf("%d %s %s ", me->pw_gid == getgid(), me->pw_dir, me->pw_shell);
    std::printf("%d\\n", getgrgid(getgid()) != nullptr);
}
"""
CPP_SAYS = "1 /workspace /bin/sh 1\n"

SHELL = "id -un >/dev/null && id -gn >/dev/null && grep -c :/workspace:/bin/sh /etc/passwd"


def functions(rig: Rig) -> list[tuple[Repeated, str]]:
    """One of each runtime, and what it is to say."""
    compiled = {"main.cpp": CPP, "run.sh": "g++ main.cpp -o who && ./who"}
    return [(Repeated(rig, PYTHON), PYTHON_SAYS), (Repeated(rig, compiled, "cpp"), CPP_SAYS)]


@pytest.mark.parametrize("uid", [65534, 12345], ids=["the image has it", "the image has it not"])
def test_a_function_knows_who_it_is(tmp_path: Path, uid: int) -> None:
    """In cold, warm and prewarmed containers; the image's own users are still there."""
    with open_rig(tmp_path, container_uid=uid, prewarmed={"python": 1, "cpp": 1}, pause_after_s=600.0) as rig:
        for function, said in functions(rig):
            assert function.succeed() == (StartKind.COLD, said)
            assert function.succeed() == (StartKind.WARM, said)
        rig.owner.prewarm(["python", "cpp"])
        await_states(rig, "idle", "idle", "prewarmed", "prewarmed")
        for function, said in functions(rig):
            assert function.succeed(function_id="another") == (StartKind.PREWARMED, said)
        launched = rig.run({"run.sh": SHELL}, runtime="sh")
        assert (launched.out, launched.err) == ("1\n", "")


ODD_FILES = {
    "rm /etc/passwd /etc/group": "/workspace\n",
    "cd /etc; mv passwd there; ln -s there passwd": "/workspace root www-data\n",
    "cd /etc; rm passwd; mkdir passwd.d; ln -s passwd.d/none passwd": "/workspace\n",
}
"""What is done to an image's files, and whom a function then knows."""

KNOWN = """
import os, pwd
names = {one.pw_name for one in pwd.getpwall()}
print(pwd.getpwuid(os.getuid()).pw_dir, *sorted({"root", "www-data"} & names))
"""


@contextmanager
def image_after(command: str) -> Iterator[str]:
    """The python image, changed by a command."""
    client = docker.from_env()
    made = client.containers.run(PYTHON_IMAGE, ["/bin/sh", "-c", command], detach=True, network_mode="none")
    try:
        assert made.wait(timeout=30)["StatusCode"] == 0
        tag = made.commit("nanogrid-test/users", uuid.uuid4().hex[:8]).tags[0]
        try:
            yield tag
        finally:
            client.images.remove(tag, force=True)
    finally:
        made.remove(force=True)
        client.close()


@pytest.mark.parametrize(("command", "said"), ODD_FILES.items(), ids=["missing", "a link", "a link to nothing"])
def test_an_image_with_odd_files_has_the_user_too(tmp_path: Path, command: str, said: str) -> None:
    """Where there are no such files only the functions' user is known; a link is followed."""
    with image_after(command) as image, open_rig(tmp_path, python_image=image) as rig:
        assert rig.run(KNOWN).out == said
