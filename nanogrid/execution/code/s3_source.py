"""Fetches objects from S3: an object's current version, and its bytes with their digest.

The rule: in this package, only this module knows botocore's errors. Errors that may go away become
CodeUnavailableError, all others CodeNotFoundError with what to check.

boto3 is imported and the client created on first use in each process, so that importing this module is cheap and no
connection is shared across a fork.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogrid.connections.s3 import s3_client
from nanogrid.errors import CodeCorruptError, CodeError, CodeNotFoundError, CodeUnavailableError
from nanogrid.settings import Settings
from nanogrid.telemetry import counters
from nanogrid.telemetry.events import count

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

log = logging.getLogger(__name__)

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024
RETRYABLE_CODES = frozenset(
    {
        "ExpiredToken",
        "TokenRefreshRequired",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""S3 error codes with a status below 500 that may be gone at a later attempt, for example with fresh credentials."""

REMEDIES = {
    "NoSuchBucket": "there is no such bucket: check the bucket's name and the region",
    "NoSuchKey": "there is no such object: check the key, and that it was uploaded before the request was sent",
    "404": "there is no such object or bucket: check bucket and key, and that it was uploaded before the request was sent",
    "InvalidObjectState": "the object is archived (Glacier): restore it, or upload it again in another storage class",
    "InvalidBucketName": "this is not a valid bucket name: check the bucket's name",
    "403": "access is denied: check that the worker may s3:GetObject (and kms:Decrypt for an encrypted object); without "
    "s3:ListBucket, S3 answers the same for objects that do not exist",
}


@dataclass(frozen=True)
class ObjectVersion:
    """The version of an object. Equal versions mean equal bytes. `version_id` is "" without versioning."""

    etag: str
    version_id: str


@dataclass(frozen=True)
class Download:
    """A finished download."""

    version: ObjectVersion
    sha256: str
    size_bytes: int


class Source:
    """S3 as a source of code. Thread-safe, and usable after a fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limit_bytes = settings.archive_limit_mb * MIB
        self._client: tuple[int, S3Client] | None = None

    @property
    def client(self) -> S3Client:
        """This process's client."""
        # No lock, which a fork could leave locked: two threads may each create a client on first use, and one is kept.
        if self._client is None or self._client[0] != os.getpid():
            self._client = (os.getpid(), s3_client(self._settings))
        return self._client[1]

    def version(self, bucket: str, key: str) -> ObjectVersion:
        """The object's current version, by one HEAD request, which transfers no content.

        HEAD is used, not GET with If-None-Match: every S3-compatible server supports it, it returns the version as well as
        the ETag, and it leaves no body to discard if the object has changed.
        """
        with _translated(bucket, key):
            return _version(self.client.head_object(Bucket=bucket, Key=key))

    def download(self, bucket: str, key: str, target: Path) -> Download:
        """Stream the object into the new file `target`, with at most one chunk of it in memory.

        Raises CodeCorruptError if it is larger than `archive_limit_mb`, and an OSError if the disk is full.
        """
        with _translated(bucket, key):
            answer = self.client.get_object(Bucket=bucket, Key=key)
        body = answer["Body"]
        digest, size = hashlib.sha256(), 0
        try:
            self._check_size(bucket, key, answer.get("ContentLength", 0))
            with target.open("xb") as file:
                while True:
                    with _translated(bucket, key):
                        chunk = body.read(CHUNK_BYTES)
                    if not chunk:
                        break
                    size += len(chunk)
                    self._check_size(bucket, key, size)
                    digest.update(chunk)
                    file.write(chunk)
        finally:
            body.close()
            count(counters.S3_BYTES, amount=size)
        return Download(_version(answer), digest.hexdigest(), size)

    def _check_size(self, bucket: str, key: str, size: int) -> None:
        if size > self._limit_bytes:
            raise CodeCorruptError(
                f"{url(bucket, key)} has {size} bytes or more, over the limit of {self._settings.archive_limit_mb} MiB for "
                "an archive: make it smaller, or raise NANOGRID_ARCHIVE_LIMIT_MB"
            )


def url(bucket: str, key: str) -> str:
    """The object's address for use in a message."""
    return ascii(f"s3://{bucket}/{key}")[1:-1]


def _version(answer: Any) -> ObjectVersion:
    # An endpoint that returns no ETag gives nothing to compare: then every check finds a different object.
    return ObjectVersion(etag=answer.get("ETag") or f"none-{uuid.uuid4()}", version_id=answer.get("VersionId") or "")


@contextmanager
def _translated(bucket: str, key: str) -> Iterator[None]:
    """Turn the errors of botocore, and of the network below it, into NanoGrid's."""
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _refused(bucket, key, error) from error
    except ParamValidationError as error:
        raise CodeNotFoundError(
            f"{url(bucket, key)} cannot exist ({_one_line(error)}): check bucket and key of the request"
        ) from error
    except (BotoCoreError, HTTPError, OSError) as error:
        raise CodeUnavailableError(
            f"{url(bucket, key)} could not be fetched ({type(error).__name__}: {_one_line(error)}): check that this host "
            "reaches S3 and has AWS credentials"
        ) from error


def _refused(bucket: str, key: str, error: Any) -> CodeError:
    """NanoGrid's error for an error response of S3."""
    answer: dict[str, Any] = error.response
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = _one_line(answer.get("Error", {}).get("Message", "") or code)
    where = url(bucket, key)
    if status >= 500 or status == 429 or code in RETRYABLE_CODES:
        return CodeUnavailableError(
            f"{where} could not be fetched now: S3 answered {status} {code} ({said}), try again later"
        )
    remedy = REMEDIES.get(code) or REMEDIES.get(str(status)) or "check bucket, key and the worker's AWS configuration"
    return CodeNotFoundError(f"{where} could not be fetched, S3 answered {status} {code}: {remedy}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:500]
