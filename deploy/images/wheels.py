"""Gathers the content of the worker image: locked wheels, for a different Python than the one that runs this.

The rule: the lock decides. Markers are evaluated for the base image's interpreter, and each wheel's hash is checked
here and again when the image is built.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import docker
from docker.errors import DockerException
from engine import connect
from packaging.markers import default_environment
from packaging.requirements import Requirement
from progress import BuildError, say, timed

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = ROOT / "build" / "worker"

PROBE = """
import json, platform, sys
print(json.dumps({
    "python_full_version": platform.python_version(),
    "python_version": "%d.%d" % sys.version_info[:2],
    "implementation_version": platform.python_version(),
    "platform_machine": platform.machine(),
    "glibc_minor": int(platform.libc_ver()[1].split(".")[1]),
}))
"""

Interpreter = dict[str, str | int]
"""Marker values of an interpreter, and `glibc_minor` (2.x) of the system around it."""


def interpreter_of(client: docker.DockerClient, image: str) -> Interpreter:
    """Ask an image's python3 for its marker values."""
    output = client.containers.run(image, ["python3", "-c", PROBE], remove=True, network_mode="none")
    found: Interpreter = json.loads(output)
    return found


def marker_environment(interpreter: Interpreter) -> dict[str, str]:
    """The environment in which markers are evaluated for that interpreter."""
    environment = dict(cast("Mapping[str, str]", default_environment()))
    return environment | {key: str(value) for key, value in interpreter.items()}


def lock_for(lock: str, interpreter: Interpreter) -> str:
    """The lines of a lock file that apply to an interpreter, without their markers, with their hashes."""
    environment = marker_environment(interpreter)
    kept = []
    for entry in lock.replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        head, *hashes = entry.split(" --hash=")
        requirement = Requirement(head.strip())
        if requirement.marker is None or requirement.marker.evaluate(environment):
            parts = [f"{requirement.name}{requirement.specifier}", *(f"--hash={value.strip()}" for value in hashes)]
            kept.append(" \\\n    ".join(parts) + "\n")
    return "".join(kept)


def platform_tags(interpreter: Interpreter) -> list[str]:
    """Every wheel platform that works there, newest C library first."""
    machine = interpreter["platform_machine"]
    return [f"manylinux_2_{minor}_{machine}" for minor in range(int(interpreter["glibc_minor"]), 4, -1)] + [
        f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")
    ]


def run_quietly(command: list[str], what: str) -> None:
    """Run a command; its output is shown only if it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{what} failed (exit code {done.returncode}):\n{done.stdout[-3000:]}")


def gather_locked(context: Path, requirements: str, interpreter: Interpreter) -> None:
    """Download wheels for an interpreter by its lines of a lock, unless they were already downloaded for the same lines."""
    written = context / "requirements.txt"
    if written.is_file() and written.read_text() == requirements:
        say("wheels: up to date")
        return
    shutil.rmtree(context, ignore_errors=True)
    (context / "locked").mkdir(parents=True)
    incomplete = context / "requirements.incomplete"
    incomplete.write_text(requirements)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={interpreter['python_full_version']}"]
    command += [f"--platform={tag}" for tag in platform_tags(interpreter)]
    command += ["--require-hashes", "-r", str(incomplete), "-d", str(context / "locked")]
    with timed(f"wheels for Python {interpreter['python_version']}"):
        run_quietly(command, "pip download")
    incomplete.rename(written)


def gather_project(context: Path) -> None:
    """Build the project's wheel, and copy the worker configuration next to it."""
    shutil.rmtree(context / "project", ignore_errors=True)
    run_quietly(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(context / "project")],
        "the build of nanogrid",
    )
    shutil.copy(ROOT / "celeryconfig.py", context / "celeryconfig.py")


def gather(client: docker.DockerClient, base: str, context: Path = CONTEXT) -> Path:
    """Fill `context` with everything that `deploy/Dockerfile` copies, for the Python of the image `base`."""
    interpreter = interpreter_of(client, base)
    gather_locked(context, lock_for((ROOT / "requirements" / "runtime.txt").read_text(), interpreter), interpreter)
    gather_project(context)
    return context


def main() -> int:
    """Gather for one base image."""
    parser = argparse.ArgumentParser(prog="scripts/wheels", description="Gather the wheels of the worker image.")
    parser.add_argument(
        "base", nargs="?", default="nanogrid/python:3.13", help="image whose Python they are for (%(default)s)"
    )
    arguments = parser.parse_args()
    try:
        print(gather(connect(), arguments.base))
    except (BuildError, DockerException) as error:
        print(f"scripts/wheels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
