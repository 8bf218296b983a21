"""The Docker engine that gets the images.

Spoken to through docker-py: the project depends on it anyway, while the command-line client is a package of its own in
newer Debian releases and needs another one (buildx) to build.
"""

from __future__ import annotations

import os

import docker


def connect(timeout_s: int = 60) -> docker.DockerClient:
    """The engine of `NANOGRID_DOCKER_URL`, else of `DOCKER_HOST`, else of this host."""
    url = os.environ.get("NANOGRID_DOCKER_URL")
    if url:
        return docker.DockerClient(base_url=url, timeout=timeout_s)
    return docker.from_env(timeout=timeout_s)
