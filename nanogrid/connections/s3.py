"""The client for S3.

boto3 is imported when a client is created, so that importing this module costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanogrid.errors import ConfigurationError
from nanogrid.settings import Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
"""Longest pause within an answer, not the time of a whole download."""

ATTEMPTS = 3


def s3_client(settings: Settings) -> S3Client:
    """A new S3 client. Takes about 0.1 s. Threads may share it; a forked process must not use it.

    Raises ConfigurationError if boto3 cannot create one from the settings and the AWS environment.
    """
    import boto3.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        user_agent_extra="nanogrid",
    )
    try:
        # A separate session: two threads must not use boto3's default session at once.
        return boto3.session.Session().client(
            "s3", region_name=settings.region, endpoint_url=settings.s3_endpoint_url or None, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"no S3 client can be created for region {settings.region!r} and endpoint {settings.s3_endpoint_url!r} ({error}): "
            "check NANOGRID_AWS_REGION, NANOGRID_S3_ENDPOINT_URL and the AWS profile"
        ) from error
