"""Builds the worker image, `nanogrid/worker:<version>`, without network.

The rule: the build itself gets no network, so that what is in the image is exactly what was gathered and checked.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import build
import docker
from docker.errors import BuildError as EngineBuildError
from docker.errors import DockerException
from engine import connect
from progress import BuildError, say, timed
from wheels import ROOT, gather

BASE_RECIPE = "nanogrid/python:3.13"
BUILD_TIMEOUT_S = 900


def base_image(client: docker.DockerClient) -> str:
    """The image to build on: the official one if it is available, else the equivalent."""
    return build.choose_image(
        client, BASE_RECIPE, build.load_recipes()[BASE_RECIPE], if_unreachable=True, rebuild=False
    )


def build_without_network(client: docker.DockerClient, base: str, context: Path, dockerfile: Path, tag: str) -> None:
    """Build an image from a gathered context. The engine reuses layers that did not change."""
    try:
        client.images.build(
            path=str(context),
            dockerfile=str(dockerfile),
            buildargs={"BASE": base},
            tag=tag,
            network_mode="none",
            rm=True,
            forcerm=True,
        )
    except EngineBuildError as error:
        log = "".join(str(line.get("stream", "")) for line in error.build_log)
        raise BuildError(f"{error}\n{log[-3000:]}") from error


def main() -> int:
    """Gather and build."""
    parser = argparse.ArgumentParser(
        prog="scripts/worker-image", description="Build the worker image. Prints its name."
    )
    parser.add_argument("--base", help=f"image to build on (default: {BASE_RECIPE} or its official counterpart)")
    parser.add_argument(
        "--tag", default=f"nanogrid/worker:{version('nanogrid')}", help="name of the image (%(default)s)"
    )
    arguments = parser.parse_args()
    try:
        client = connect(BUILD_TIMEOUT_S)
        base = arguments.base or base_image(client)
        context = gather(client, base)
        with timed(f"{arguments.tag} on {base}"):
            build_without_network(client, base, context, ROOT / "deploy" / "Dockerfile", arguments.tag)
        say(f"{arguments.tag}: ready")
        print(arguments.tag)
    except (BuildError, DockerException) as error:
        print(f"scripts/worker-image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
