"""`nanogrid result` and `nanogrid cancel`: a request that was sent before. `nanogrid results`: the results of all requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nanogrid.cli import console
from nanogrid.cli.options import JsonOption, JsonResultOption, RequestIdArgument

if TYPE_CHECKING:
    from nanogrid.client import Client

NOT_CANCELLED = 1
CANCEL_WAIT_S = 3.0


def result(
    request_id: RequestIdArgument,
    wait_s: Annotated[
        float, typer.Option("--wait", "-w", min=0, metavar="SECONDS", help="Wait this long for the result.")
    ] = 0.0,
    as_json: JsonResultOption = False,
) -> None:
    """Print a result, as `invoke` would have.

    Exit code: the function's own, as with `invoke`; 2 no result (yet).
    """
    from nanogrid.cli.output import print_result
    from nanogrid.cli.progress import wait_for
    from nanogrid.cli.target import find_target, producer

    client = producer(find_target())
    if wait_s:
        raise typer.Exit(wait_for(client, request_id, wait_s, as_json=as_json))
    found = client.result(request_id)
    print_result(found, as_json=as_json)
    raise typer.Exit(found.shell_exit_code)


def results(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with each new result, until Ctrl-C.")
    ] = False,
    function: Annotated[
        str | None, typer.Option("--function", metavar="F", help="Results of this function only.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="now, all, an entry's id (after it), or a time in ms since 1970. "
            "Default: all; with --follow and no group: now.",
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="G", help="Redis stores the position under this name: continue from there."),
    ] = None,
    consumer: Annotated[
        str | None,
        typer.Option(metavar="C", help="Name within the group, one per reader. Default: the host's name."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per result.")] = False,
) -> None:
    """Print the results of all requests that are still in the results stream, one line each, oldest first.

    Exit code: 0 success; 130 interrupted.
    """
    from nanogrid.cli.output import print_line
    from nanogrid.cli.target import find_target
    from nanogrid.results.stream.follower import follow as follow_stream

    if consumer is not None and group is None:
        raise typer.BadParameter("--consumer is a name within a group: also give --group")
    settings = find_target().settings
    start = start or ("now" if follow and group is None else "all")
    found = follow_stream(
        settings, function=function, group=group, consumer=consumer, start=start, idle_s=None if follow else 0.0
    )
    try:
        for each in found:
            if as_json:
                console.print_json_line(each.to_wire())
            else:
                print_line(each)
    except KeyboardInterrupt:
        raise typer.Exit(console.INTERRUPTED) from None


def cancel(
    request_id: RequestIdArgument,
    as_json: JsonOption = False,
) -> None:
    """Cancel a request: kill its container, or never start it.

    Exit code: 0 it was cancelled; 1 it had already ended, or no worker answered.
    """
    from nanogrid.cli.target import connect, find_target

    client = connect(find_target())
    if client.cancel(request_id):
        state, sentence = _what_became_of(client, request_id)
    else:
        state, sentence = "ended", f"{request_id} was not cancelled: it has already ended"
    cancelled = state == "cancelled"
    if as_json:
        console.print_json({"requestId": request_id, "cancelled": cancelled, "state": state})
    else:
        (console.note if cancelled else console.complain)(sentence)
    raise typer.Exit(0 if cancelled else NOT_CANCELLED)


def _what_became_of(client: Client, request_id: str) -> tuple[str, str]:
    """A word and a sentence about a cancellation that was sent: a running function ends within moments."""
    from nanogrid.errors import ResultUnavailableError

    try:
        outcome = client.wait(request_id, CANCEL_WAIT_S).outcome.value
    except ResultUnavailableError:
        return "unanswered", f"{request_id} is not cancelled yet: no worker answered within {CANCEL_WAIT_S:g} s"
    return outcome.lower(), f"{request_id} ended as {outcome}"
