"""The environment of the local stack: for its own processes, and for producers that use it.

The rule: nothing of the user's real AWS account or deployment reaches the local stack. Variables that say *where*
things are get replaced; everything else (limits, runtimes, images) is kept.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping

from nanogrid.local.folder import Ports, StackFolder
from nanogrid.local.probes import LOOPBACK

OFFICIAL_AND_OURS = {
    "NANOGRID_PYTHON_IMAGE": ("python:3.9-slim", "nanogrid/python:3.9"),
    "NANOGRID_CPP_IMAGE": ("gcc:11", "nanogrid/gcc:11"),
}
"""Setting → the official image, and the equivalent that `deploy/images` builds if no registry can be reached."""

CANDIDATE_IMAGES = [image for pair in OFFICIAL_AND_OURS.values() for image in pair]

KEPT_AWS = frozenset({"AWS_CA_BUNDLE", "AWS_PAGER", "AWS_EC2_METADATA_DISABLED"})
"""AWS variables that do not name an account or a location."""

PLACES = frozenset(
    {
        "NANOGRID_AWS_REGION",
        "NANOGRID_BROKER_URL",
        "NANOGRID_SQS_ENDPOINT_URL",
        "NANOGRID_S3_ENDPOINT_URL",
        "NANOGRID_RESULT_URL",
        "NANOGRID_MONITOR_URL",
        "NANOGRID_DATA_DIR",
        "NANOGRID_CREATE_QUEUES",
        "NANOGRID_QUEUE_URLS",
        "NANOGRID_QUEUE_PREFIX",
    }
)
"""NanoGrid's settings that say where a deployment is."""


def names_a_place(variable: str) -> bool:
    """Whether this variable points to an AWS account or a deployment. The local stack must not inherit such variables."""
    return variable in PLACES or (variable.startswith("AWS_") and variable not in KEPT_AWS)


def producer_environment(folder: StackFolder, ports: Ports, present_images: Iterable[str]) -> dict[str, str]:
    """The variables that a producer, and every `nanogrid` command, needs to use this stack."""
    environment = {
        "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{ports.sqs}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NANOGRID_RESULT_URL": f"redis://{LOOPBACK}:{ports.redis}/0",
        "NANOGRID_MONITOR_URL": f"redis://{LOOPBACK}:{ports.redis}/1",
        "NANOGRID_CREATE_QUEUES": "true",
        "NANOGRID_DATA_DIR": str(folder.worker_data),
        # Users run their own code on their own machine, so requirements.txt works without further setup.
        "NANOGRID_BUILD_NETWORK": os.environ.get("NANOGRID_BUILD_NETWORK") or "bridge",
    }
    return environment | _images(set(present_images))


def process_environment(producer: Mapping[str, str]) -> dict[str, str]:
    """The environment of the stack's processes: the user's own without variables that name a place, and the stack's."""
    inherited = {name: value for name, value in os.environ.items() if not names_a_place(name)}
    # Any free port: another stack's worker, or a real one, may use the default port.
    inherited.setdefault("NANOGRID_METRICS_ADDRESS", f"{LOOPBACK}:0")
    # Flower's API is on loopback, like its pages: only users of this machine can reach either.
    return {**inherited, "AWS_EC2_METADATA_DISABLED": "true", "FLOWER_UNAUTHENTICATED_API": "true", **producer}


def shell_lines(environment: Mapping[str, str]) -> list[str]:
    """Lines for `eval`: they unset variables of the caller that would override the stack's, then set the stack's."""
    disturbing = sorted(name for name in os.environ if names_a_place(name) and name not in environment)
    lines = [f"unset {' '.join(disturbing)}"] if disturbing else []
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def _images(present: set[str]) -> dict[str, str]:
    """The user's own choice first; else the official image if it is present; else NanoGrid's if it is."""
    chosen = {}
    for variable, (official, ours) in OFFICIAL_AND_OURS.items():
        own = os.environ.get(variable)
        if own:
            chosen[variable] = own
        elif official not in present and ours in present:
            chosen[variable] = ours
    return chosen
