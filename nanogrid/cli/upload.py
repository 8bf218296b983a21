"""Uploads a function's code, and fills in what the request says about it: runtime, name, location.

The rule: an argument means the same for `invoke` and `tune`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nanogrid.cli import console
from nanogrid.errors import InvalidRequestError

if TYPE_CHECKING:
    from nanogrid.cli.function_source import LocalCode, StoredCode
    from nanogrid.cli.target import Target
    from nanogrid.client import Client

LOCAL_BUCKET = "nanogrid-functions"
"""The bucket for uploads to a local stack. It is created if it is missing."""


def with_code(
    source_text: str, request: dict[str, Any], bucket: str | None, target: Target, client: Client
) -> dict[str, Any]:
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
    return {**filled, **_place(source, filled, bucket, target, client)}


def _place(
    source: StoredCode | LocalCode, request: dict[str, Any], bucket: str | None, target: Target, client: Client
) -> dict[str, str]:
    """Where the code is in S3, after an upload if necessary, with its hash if it is known."""
    from nanogrid.cli.function_source import StoredCode, pack

    if isinstance(source, StoredCode):
        return {"s3Bucket": source.bucket, "s3Key": source.key}
    table = target.settings.runtime_table
    runtime = table.canonical(request["runtime"])
    if runtime is None:
        accepted = ", ".join(table.accepted())
        raise InvalidRequestError("runtime", f"{request['runtime']!r} is not known; accepted are {accepted}")
    archive = pack(source, table[runtime], target.settings, handler=request.get("handler"))
    bucket = bucket or _default_bucket(target)
    if target.is_local:
        _make_bucket(bucket, target)
    key, sha256 = client.upload(archive, bucket)
    return {"s3Bucket": bucket, "s3Key": key, "codeSha256": sha256}


def _default_bucket(target: Target) -> str:
    if target.is_local:
        return LOCAL_BUCKET
    raise InvalidRequestError("s3Bucket", "is missing: name the bucket for the upload with --bucket")


def _make_bucket(bucket: str, target: Target) -> None:
    """Create the bucket on a local S3 if it is missing."""
    from nanogrid.connections.s3 import s3_client

    client, region = s3_client(target.settings), target.settings.region
    # S3 requires the region here, except for us-east-1.
    where: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=bucket, **where)
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        return


def _function_id(source: StoredCode | LocalCode) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip("-.") or "function"
