"""`nanogrid invoke`: run one function and behave like the function: its output, its exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from nanogrid.cli import console
from nanogrid.cli.exit_codes import exits_with
from nanogrid.cli.inputs import given
from nanogrid.cli.upload import LOCAL_BUCKET, with_code


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
    stdin: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="In place of a payload: its stdin, byte for byte.")
    ] = None,
    stdin_text: Annotated[str | None, typer.Option(metavar="TEXT", help="Likewise, this text.")] = None,
    timeout_ms: Annotated[int | None, typer.Option(help="End the function after this many milliseconds.")] = None,
    memory_mb: Annotated[int | None, typer.Option(help="Memory limit in MiB.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPU limit, in cores.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            "-e",
            metavar="NAME=VALUE|@FILE|@-",
            help="A variable of the function, or a file with it; repeat it.",
        ),
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
    from nanogrid.cli.progress import wait_for
    from nanogrid.cli.target import connect, find_target

    wanted = {
        "runtime": runtime,
        "functionId": function_id,
        "timeoutMs": timeout_ms,
        "memoryMb": memory_mb,
        "cpus": cpus,
        "handler": handler,
    }
    with exits_with(console.NOT_RUN):
        request = {name: value for name, value in wanted.items() if value is not None} | given(
            env or [], payload, stdin, stdin_text
        )
        target = find_target()
        client = connect(target)
        request = with_code(source, request, bucket, target, client)
        request_id = client.submit(request)
        if no_wait:
            _print_id(request_id, as_json=as_json)
            return
        exit_code = wait_for(client, request_id, None, as_json=as_json)
    raise typer.Exit(exit_code)


def _print_id(request_id: str, *, as_json: bool) -> None:
    if as_json:
        console.print_json({"requestId": request_id})
    else:
        typer.echo(request_id)
    console.note(f"fetch its result with: nanogrid result {request_id} --wait 60")
