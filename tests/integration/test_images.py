"""The images that `deploy/images` and `deploy/Dockerfile` make, run with the restrictions that functions run under."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import docker
import pytest
from docker.utils.socket import frames_iter

from nanogrid.celery import app

ROOT = Path(__file__).resolve().parents[2]
PYTHON_39, PYTHON_313, GCC = "nanogrid/python:3.9", "nanogrid/python:3.13", "nanogrid/gcc:11"
WORKER = f"nanogrid/worker:{version('nanogrid')}"

Run = Callable[[str, str], str]


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    """This host's engine."""
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def run(engine: docker.DockerClient) -> Run:
    """Run a shell command in an image as functions run: no network, read-only root, unprivileged; returns its output."""

    def run_in(image: str, command: str) -> str:
        container = engine.containers.create(
            image,
            ["sh", "-c", command],
            network_mode="none",
            read_only=True,
            user="65534:65534",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            tmpfs={"/workspace": "uid=65534,exec", "/tmp": "exec"},
            working_dir="/workspace",
        )
        try:
            # Attached before it starts: what is asked of the engine's log afterwards may come too late on a busy machine.
            socket = engine.api.attach_socket(str(container.id), {"stdout": 1, "stderr": 1, "stream": 1})
            container.start()
            output = b"".join(data for _, data in frames_iter(socket, tty=False))  # type: ignore[no-untyped-call]
            socket._response.close()  # docker-py ties the socket's life to it
            socket.close()
            assert container.wait()["StatusCode"] == 0, output
        finally:
            container.remove(force=True)
        return output.decode()

    return run_in


@pytest.mark.parametrize(
    ("image", "expected"), [(PYTHON_39, "Python 3.9."), (PYTHON_313, "Python 3.13."), (GCC, "Python 3.")]
)
def test_python_answers_by_both_names(run: Run, image: str, expected: str) -> None:
    """`python` and `python3` are the same interpreter of the promised version."""
    by_name = [run(image, f"{name} --version") for name in ("python", "python3")]
    assert by_name[0] == by_name[1]
    assert by_name[0].startswith(expected)


@pytest.mark.parametrize("compiler", ["g++", "c++", "gcc", "cc"])
def test_the_compiler_is_version_11(run: Run, compiler: str) -> None:
    """The compiler's usual names mean version 11, as in the official image."""
    assert run(GCC, f"{compiler} -dumpversion").strip() == "11"


def test_a_program_compiles_and_runs(run: Run) -> None:
    """C++20 with threads, built by make, runs in the same container."""
    source = r'#include <iostream>\n#include <thread>\nint main() { std::jthread t([]{ std::cout << "ran"; }); }'
    makefile = r"main: main.cpp\n\tg++ -std=c++20 -pthread -o main main.cpp"
    assert run(GCC, f"printf '{source}' >main.cpp; printf '{makefile}' >Makefile; make -s && ./main") == "ran"


@pytest.mark.parametrize("image", [PYTHON_39, PYTHON_313, GCC])
def test_what_functions_rely_on_is_there(run: Run, image: str) -> None:
    """A name for the unprivileged user, mount points, bash, UTF-8, and no trace of where the packages came from."""
    probe = (
        'id -un; stat -c %F /workspace /nanogrid; bash -c "echo bash"; '
        'python -c "import sys; print(sys.stdout.encoding, chr(233))"; ls -d /etc/apt/sources.list* /etc/apt/auth.conf* 2>&-'
    )
    assert run(image, f"{probe} || true").splitlines() == [
        "nobody",
        "directory",
        "directory",
        "bash",
        "utf-8 é",
    ]


@pytest.mark.parametrize("image", [PYTHON_39, PYTHON_313])
def test_the_standard_library_is_whole(run: Run, image: str) -> None:
    """Modules that distributions like to split off can be imported, and pip is there without Debian's marker."""
    run(image, "python -c 'import ctypes, lzma, multiprocessing, sqlite3, ssl, uuid, venv, zoneinfo'")
    assert run(image, "python -m pip --version").startswith("pip ")
    assert run(image, "ls -d /usr/lib/python3*/EXTERNALLY-MANAGED 2>&- || true") == ""


def test_a_current_image_is_not_built_again() -> None:
    """A second build says so, takes no package and prints the variables that the worker reads."""
    command = [str(ROOT / "deploy" / "images" / "build"), "--if-unreachable", PYTHON_39, GCC]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [f"NANOGRID_PYTHON_IMAGE={PYTHON_39}", f"NANOGRID_CPP_IMAGE={GCC}"]
    assert done.stderr.count("up to date") == 2


def test_the_worker_image_has_all_parts(run: Run) -> None:
    """Everything that a worker and Flower import is there, in the locked versions, and pip is not."""
    names = ["nanogrid", "celery", "kombu", "pycurl", "docker", "flower", "boto3", "redis"]
    probe = (
        f"import importlib, json; [importlib.import_module(n) for n in {names}]; from importlib.metadata import version; "
        "print(json.dumps([version(n) for n in ('nanogrid', 'celery', 'kombu')]))"
    )
    assert json.loads(run(WORKER, f'python -c "{probe}"')) == [version(n) for n in ("nanogrid", "celery", "kombu")]
    assert "No module named pip" in run(WORKER, "python -m pip --version 2>&1 || true")


def test_the_worker_image_starts_a_worker(engine: docker.DockerClient, run: Run) -> None:
    """Its default command is the one that everybody types, and the application's configuration is the checkout's."""
    assert engine.images.get(WORKER).attrs["Config"]["Cmd"] == [
        "celery",
        "-A",
        "nanogrid",
        "worker",
        "-Q",
        "python,cpp",
    ]
    probe = "from nanogrid.celery import app; print(app.conf.worker_soft_shutdown_timeout)"
    assert float(run(WORKER, f"python -c '{probe}'")) == float(app.conf.worker_soft_shutdown_timeout)
