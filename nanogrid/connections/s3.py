"""The client for S3.

botocore is imported when a client is created, so that importing this module costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nanogrid.connections.aws import new_session
from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings

if TYPE_CHECKING:
    from botocore.session import Session
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
"""Longest pause within an answer, not the time of a whole download."""

ATTEMPTS = 3


_for_child: tuple[int, tuple[str, str], S3Client] | None = None
"""A client that this process has made for the children it forks: its own id, what the client is for, and the client."""


def s3_client(settings: Settings) -> S3Client:
    """A new S3 client, or the one that the parent has made for this process. Takes about 0.1 s if it is the first of a process.

    Threads may share it; a forked process must not use a client of its parent in any other way. Raises ConfigurationError if
    botocore cannot create one from the settings and the AWS environment.
    """
    global _for_child
    if _for_child is not None and _for_child[0] != os.getpid():
        (_, made_for, client), _for_child = _for_child, None
        if made_for == _address(settings):
            return client
    return _new_client(new_session(), settings)


def make_for_children(settings: Settings) -> None:
    """Make the client of each child before the fork, so that its megabytes are shared. This process does not use it.

    It has no connection before its first use, and renews credentials that expire by itself. If there are no credentials now,
    each child makes its own client, because there may be some by then. Raises as `s3_client` does.
    """
    global _for_child
    session = new_session()
    client = _new_client(session, settings)
    _for_child = None if session.get_credentials() is None else (os.getpid(), _address(settings), client)


def _address(settings: Settings) -> tuple[str, str]:
    return settings.region, settings.s3_endpoint_url


def _new_client(session: Session, settings: Settings) -> S3Client:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        user_agent_extra="nanogrid",
    )
    try:
        return session.create_client(  # type: ignore[return-value]  # botocore's stubs know no services
            "s3", region_name=settings.region, endpoint_url=settings.s3_endpoint_url or None, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"no S3 client can be created for region {settings.region!r} and endpoint {settings.s3_endpoint_url!r} ({error}): "
            "check NANOGRID_AWS_REGION, NANOGRID_S3_ENDPOINT_URL and the AWS profile"
        ) from error
