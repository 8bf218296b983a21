"""Builds the image of the tests' SQS and S3, `nanogrid/moto:<version>`, without network.

The rule: it holds what moto's server needs and nothing else of the development lock, in the locked versions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

from docker.errors import DockerException
from engine import connect
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from progress import BuildError, say, timed
from wheels import ROOT, Interpreter, gather_locked, interpreter_of, lock_for, marker_environment
from worker import BUILD_TIMEOUT_S, base_image, build_without_network

CONTEXT = ROOT / "build" / "moto"
DOCKERFILE = ROOT / "tests" / "images" / "moto.Dockerfile"
WANTED = ("moto[s3,sqs]", "flask", "flask-cors")


def closure(wanted: Iterable[str], interpreter: Interpreter) -> set[str]:
    """Canonical names of the distributions that `wanted` needs under an interpreter, as those installed here declare it.

    One that is needed there and not installed here raises PackageNotFoundError.
    """
    environment = marker_environment(interpreter)
    seen: set[tuple[str, frozenset[str]]] = set()
    open_requirements = [Requirement(text) for text in wanted]
    while open_requirements:
        requirement = open_requirements.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in requires(requirement.name) or ():
            needed = Requirement(text)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(needed.marker.evaluate({**environment, "extra": name}) for name in extras):
                open_requirements.append(needed)
    return {name for name, _ in seen}


def requirements_for(interpreter: Interpreter) -> str:
    """The part of the development lock that moto's server needs."""
    lock = lock_for((ROOT / "requirements" / "dev.txt").read_text(), interpreter)
    return narrowed(lock, closure(WANTED, interpreter))


def narrowed(lock: str, names: set[str]) -> str:
    """The entries of a lock, each with its hashes, that have one of these canonical names."""
    entries = (line + "\n" for line in lock.replace("\\\n", "\\\0").splitlines())
    kept = [entry for entry in entries if canonicalize_name(entry.split("==")[0]) in names]
    return "".join(kept).replace("\\\0", "\\\n")


def gather(interpreter: Interpreter, context: Path = CONTEXT) -> Path:
    """Fill `context` with everything that the Dockerfile copies."""
    gather_locked(context, requirements_for(interpreter), interpreter)
    return context


def main() -> int:
    """Gather and build."""
    parser = argparse.ArgumentParser(
        prog="scripts/moto-image", description="Build the image of the tests' SQS and S3. Prints its name."
    )
    parser.add_argument("--tag", default=f"nanogrid/moto:{version('moto')}", help="name of the image (%(default)s)")
    tag = parser.parse_args().tag
    try:
        client = connect(BUILD_TIMEOUT_S)
        base = base_image(client)
        context = gather(interpreter_of(client, base))
        with timed(f"{tag} on {base}"):
            build_without_network(client, base, context, DOCKERFILE, tag)
        say(f"{tag}: ready")
        print(tag)
    except (BuildError, DockerException) as error:
        print(f"scripts/moto-image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
