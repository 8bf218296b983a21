"""Uploads a function's code, and fills in what the request says about it: runtime, name, location.

The rule: an argument means the same for `invoke` and `tune`.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from nanogrid.cli import console
from nanogrid.errors import InvalidRequestError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

    from nanogrid.cli.function_source import LocalCode, StoredCode
    from nanogrid.cli.target import Target


LOCAL_BUCKET = "nanogrid-functions"
"""The bucket for uploads to a local stack. It is created if it is missing."""

ASKED_BYTES = 256 * 1024
"""From this size on, S3 is asked first whether it has the archive. Uploading a smaller one costs no more than asking."""


def with_code(source_text: str, request: dict[str, Any], bucket: str | None, target: Target) -> dict[str, Any]:
    """The request with runtime, function id and code filled in. Uploads the code unless it is in S3 already.

    Raises InvalidRequestError or CodeError if they cannot be determined, or the code is unusable.
    """
    from nanogrid.cli.function_source import find_source, guess_runtime
    from nanogrid.request import check_handler

    if "handler" in request:
        check_handler(request["handler"])
    source = find_source(source_text)
    filled = {**request}
    if "runtime" not in filled:
        filled["runtime"] = guess_runtime(source, target.settings, handler=request.get("handler"))
        console.note(
            f"runtime: {filled['runtime']} (detected from the {'handler' if 'handler' in request else 'files'})"
        )
    filled.setdefault("functionId", _function_id(source))
    return {**filled, **_place(source, filled, bucket, target)}


def _place(
    source: StoredCode | LocalCode, request: dict[str, Any], bucket: str | None, target: Target
) -> dict[str, str]:
    """Where the code is in S3, after an upload if necessary, with its hash if it is known."""
    from nanogrid.cli.function_source import StoredCode, pack
    from nanogrid.connections.s3 import s3_client

    if isinstance(source, StoredCode):
        return {"s3Bucket": source.bucket, "s3Key": source.key}
    table = target.settings.runtime_table
    runtime = table.canonical(request["runtime"])
    if runtime is None:
        accepted = ", ".join(table.accepted())
        raise InvalidRequestError("runtime", f"{request['runtime']!r} is not known; accepted are {accepted}")
    archive = pack(source, table[runtime], target.settings, handler=request.get("handler"))
    bucket = bucket or _default_bucket(target)
    sha256 = hashlib.sha256(archive).hexdigest()
    key = f"{sha256}.zip"
    stack = target.plain_aws
    if stack is None or not stack.store(bucket, key, archive):
        client = s3_client(target.settings)
        if len(archive) < ASKED_BYTES or not _is_stored(client, archive, bucket, key):
            _store(client, archive, bucket, key, target)
    return {"s3Bucket": bucket, "s3Key": key, "codeSha256": sha256}


def _is_stored(client: S3Client, archive: bytes, bucket: str, key: str) -> bool:
    """Whether the object has these bytes. False also if that cannot be told: for one, an encrypted object has another ETag."""
    try:
        found = client.head_object(Bucket=bucket, Key=key)
    except client.exceptions.ClientError:
        return False
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()  # S3's name for the content
    return found["ContentLength"] == len(archive) and found["ETag"].strip('"') == md5


def _store(client: S3Client, archive: bytes, bucket: str, key: str, target: Target) -> None:
    """Upload, and create the bucket on a local S3 if it is missing."""
    try:
        client.put_object(Bucket=bucket, Key=key, Body=archive)
    except client.exceptions.NoSuchBucket:
        if not target.is_local:
            raise
        _make_bucket(client, bucket, target.settings.region)
        client.put_object(Bucket=bucket, Key=key, Body=archive)


def _default_bucket(target: Target) -> str:
    if target.is_local:
        return LOCAL_BUCKET
    raise InvalidRequestError("s3Bucket", "is missing: name the bucket for the upload with --bucket")


def _make_bucket(client: S3Client, bucket: str, region: str) -> None:
    # S3 requires the region here, except for us-east-1.
    where: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=bucket, **where)
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        return


def _function_id(source: StoredCode | LocalCode) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip("-.") or "function"
