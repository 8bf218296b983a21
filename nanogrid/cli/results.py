"""`nanogrid result` and `nanogrid cancel`: a request that was sent before."""

from __future__ import annotations

from typing import Annotated

import typer

from nanogrid.cli import console

RequestIdArgument = Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As `invoke --no-wait` printed it.")]
NOT_CANCELLED = 1


def result(
    request_id: RequestIdArgument,
    wait_s: Annotated[
        float, typer.Option("--wait", "-w", min=0, metavar="SECONDS", help="Wait this long for a result to come.")
    ] = 0.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the ExecutionResult as JSON and nothing else.")
    ] = False,
) -> None:
    """Print a result, as `invoke` would have.

    Exit code: the function's own, as with `invoke`; 2 there is no result (yet).
    """
    from nanogrid.cli.printing import print_result
    from nanogrid.cli.target import connect, find_target
    from nanogrid.cli.waiting import wait_for

    client = connect(find_target())
    if wait_s:
        raise typer.Exit(wait_for(client, request_id, wait_s, as_json=as_json))
    found = client.result(request_id)
    print_result(found, as_json=as_json)
    raise typer.Exit(found.shell_exit_code)


def cancel(request_id: RequestIdArgument) -> None:
    """End a request: its container is killed, or it is never started.

    Exit code: 0 it was cancelled; 1 it had ended already, or no worker answered.
    """
    from nanogrid.cli.target import connect, find_target

    if connect(find_target()).cancel(request_id):
        console.note(f"cancelled {request_id}")
        return
    console.complain(f"{request_id} was not cancelled: it has ended already, or no worker answered")
    raise typer.Exit(NOT_CANCELLED)
