"""`nanogrid result` and `nanogrid cancel`: a request that was sent before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nanogrid.cli import console

if TYPE_CHECKING:
    from nanogrid.client import Client

RequestIdArgument = Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As `invoke --no-wait` printed it.")]
NOT_CANCELLED = 1
CANCEL_WAIT_S = 3.0


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


def cancel(
    request_id: RequestIdArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """End a request: its container is killed, or it is never started.

    Exit code: 0 it was cancelled; 1 it had ended already, or no worker answered.
    """
    from nanogrid.cli.target import connect, find_target

    client = connect(find_target())
    if client.cancel(request_id):
        state, sentence = _what_became_of(client, request_id)
    else:
        state, sentence = "ended", f"{request_id} was not cancelled: it has ended already"
    cancelled = state == "cancelled"
    if as_json:
        console.print_json({"requestId": request_id, "cancelled": cancelled, "state": state})
    else:
        (console.note if cancelled else console.complain)(sentence)
    raise typer.Exit(0 if cancelled else NOT_CANCELLED)


def _what_became_of(client: Client, request_id: str) -> tuple[str, str]:
    """A word and a sentence about a cancellation that was sent: a running function is gone within moments."""
    from nanogrid.errors import ResultUnavailableError

    try:
        outcome = client.wait(request_id, CANCEL_WAIT_S).outcome.value
    except ResultUnavailableError:
        return "unanswered", f"{request_id} was not cancelled yet: no worker answered within {CANCEL_WAIT_S:g} s"
    return outcome.lower(), f"{request_id} ended as {outcome}"
