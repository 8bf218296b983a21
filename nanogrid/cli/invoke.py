"""`nanogrid invoke`: run one function and behave like the function: its output, its exit code."""

from __future__ import annotations

import json
import re
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogrid.cli import console
from nanogrid.cli.failures import exits_with
from nanogrid.errors import InvalidRequestError

if TYPE_CHECKING:
    from nanogrid.cli.source import Local, Stored
    from nanogrid.cli.target import Target
    from nanogrid.client import Client

LOCAL_BUCKET = "nanogrid-functions"
"""The bucket of uploads to a local stack, made when it is missing."""


def invoke(
    source: Annotated[
        str, typer.Argument(metavar="PATH_OR_S3_URL", help="A folder, a file, a zip or tar, or s3://bucket/key.")
    ],
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", "-r", help="python, cpp, or one of your own. Default: seen from the files."),
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", "-p", metavar="JSON|@FILE|-", help="The function's input; - reads it from stdin."),
    ] = None,
    timeout_ms: Annotated[int | None, typer.Option(help="End the function after this many milliseconds.")] = None,
    memory_mb: Annotated[int | None, typer.Option(help="Memory limit in MiB.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPU limit, in cores.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable of the function; repeat it."),
    ] = None,
    handler: Annotated[
        str | None, typer.Option(metavar="MODULE.FUNCTION", help="python: call this with the payload.")
    ] = None,
    function_id: Annotated[str | None, typer.Option(help="Name of the function. Default: name of the file.")] = None,
    bucket: Annotated[
        str | None, typer.Option(help=f"Bucket to upload to. Default on a local stack: {LOCAL_BUCKET}.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the request id and return at once.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the ExecutionResult as JSON and nothing else.")
    ] = False,
) -> None:
    """Run a function, print what it prints, and exit with its exit code.

    A file becomes what its runtime starts: hello.py runs as main.py. A folder is zipped without .git, .venv,
    node_modules, __pycache__ and *.pyc.

    Exit code: the function's own; 124 it timed out; 137 it ran out of memory; 130 cancelled or interrupted;
    125 it was not run.
    """
    from nanogrid.cli.target import connect, find_target
    from nanogrid.cli.waiting import wait_for

    wanted = {
        "runtime": runtime,
        "functionId": function_id,
        "timeoutMs": timeout_ms,
        "memoryMb": memory_mb,
        "cpus": cpus,
        "handler": handler,
    }
    with exits_with(console.NOT_RUN):
        given = {name: value for name, value in wanted.items() if value is not None}
        request = given | {"env": parse_env(env or []), "payload": parse_payload(payload)}
        target = find_target()
        client = connect(target)
        request_id = _submit(source, request, bucket, target, client)
        if no_wait:
            _print_id(request_id, as_json=as_json)
            return
        exit_code = wait_for(client, request_id, None, as_json=as_json)
    raise typer.Exit(exit_code)


def parse_env(pairs: list[str]) -> dict[str, str]:
    """NAME=VALUE words as a mapping; the last of a name wins."""
    for pair in pairs:
        if "=" not in pair:
            raise InvalidRequestError("env", f"{pair!r} is no NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def parse_payload(text: str | None) -> Any:
    """The JSON value of `--payload`: given itself, in a file (@name) or on stdin (-)."""
    if text is None:
        return None
    try:
        if text == "-":
            raw = sys.stdin.buffer.read()
        else:
            raw = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        return json.loads(raw)
    except OSError as unreadable:
        raise InvalidRequestError("payload", f"{text[1:]} cannot be read: {unreadable.strerror}") from None
    except ValueError as invalid:  # broken JSON, and bytes that are no text
        raise InvalidRequestError(
            "payload", f"is no JSON ({invalid}); a text needs quotes of its own: --payload '\"text\"'"
        ) from None


def _submit(source_text: str, request: dict[str, Any], bucket: str | None, target: Target, client: Client) -> str:
    """Bring the code to S3 where it is not there yet, and send the request. The request's id."""
    from nanogrid.cli.source import find_source, guess_runtime

    source = find_source(source_text)
    if "runtime" not in request:
        request["runtime"] = guess_runtime(source, target.settings)
        console.note(f"runtime: {request['runtime']} (seen from the files)")
    request.setdefault("functionId", _function_id(source))
    request |= _place(source, request, bucket, target, client)
    return client.submit({**request, "requestId": str(uuid.uuid4())})


def _place(
    source: Stored | Local, request: dict[str, Any], bucket: str | None, target: Target, client: Client
) -> dict[str, str]:
    """Where the code is in S3, after an upload if need be, with its hash where it is known."""
    from nanogrid.cli.source import Stored, pack

    if isinstance(source, Stored):
        return {"s3Bucket": source.bucket, "s3Key": source.key}
    table = target.settings.runtime_table
    runtime = table.canonical(request["runtime"])
    if runtime is None:
        accepted = ", ".join(table.accepted())
        raise InvalidRequestError("runtime", f"{request['runtime']!r} is not known; accepted are {accepted}")
    archive = pack(source, table[runtime], target.settings, needs_required_file="handler" not in request)
    bucket = bucket or _default_bucket(target)
    if target.is_local:
        _make_bucket(bucket, target)
    key, sha256 = client.upload(archive, bucket)
    return {"s3Bucket": bucket, "s3Key": key, "codeSha256": sha256}


def _default_bucket(target: Target) -> str:
    if target.is_local:
        return LOCAL_BUCKET
    raise InvalidRequestError("s3Bucket", "name the bucket that the code is uploaded to with --bucket")


def _make_bucket(bucket: str, target: Target) -> None:
    """Make the bucket on a local S3 where it is missing."""
    from nanogrid.code.source import s3_client

    client, region = s3_client(target.settings), target.settings.region
    # S3 wants every region named here but its first one.
    where: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=bucket, **where)
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        return


def _function_id(source: Stored | Local) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip("-.") or "function"


def _print_id(request_id: str, *, as_json: bool) -> None:
    if as_json:
        console.print_json({"requestId": request_id})
    else:
        typer.echo(request_id)
    console.note(f"fetch its result with: nanogrid result {request_id} --wait 60")
