"""`nanogrid invoke`: runs one function and behaves like it, with its output and its exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from nanogrid.cli import console, options
from nanogrid.cli.exit_codes import exits_with
from nanogrid.cli.upload import with_code


def invoke(
    source: options.SourceArgument,
    runtime: options.RuntimeOption = None,
    payload: options.PayloadOption = None,
    stdin: options.StdinOption = None,
    stdin_text: options.StdinTextOption = None,
    timeout_ms: options.TimeoutOption = None,
    memory_mb: Annotated[int | None, typer.Option(help="Memory limit in MiB.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPU limit, in cores.")] = None,
    env: options.EnvOption = None,
    handler: options.HandlerOption = None,
    function_id: options.FunctionIdOption = None,
    bucket: options.BucketOption = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the request id and return at once.")] = False,
    as_json: options.JsonResultOption = False,
) -> None:
    """Run a function, print what it prints, and exit with its exit code.

    A file gets the name that its runtime starts: hello.py runs as main.py. A folder is zipped without .git, .venv,
    node_modules, __pycache__ and *.pyc.

    Exit code: the function's own; 124 timed out; 137 out of memory; 130 cancelled or interrupted; 125 not run.
    """
    from nanogrid.cli.progress import wait_for
    from nanogrid.cli.target import find_target, producer

    chosen = {
        "runtime": runtime,
        "functionId": function_id,
        "timeoutMs": timeout_ms,
        "memoryMb": memory_mb,
        "cpus": cpus,
        "handler": handler,
    }
    with exits_with(console.NOT_RUN):
        request = options.request_fields(chosen, env, payload, stdin, stdin_text)
        target = find_target()
        client = producer(target)
        request = with_code(source, request, bucket, target)
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
    console.note(f"get its result with: nanogrid result {request_id} --wait 60")
