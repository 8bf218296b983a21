"""Arguments and options that several commands share.

The rule: an option means the same, and has the same help text, in every command that has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nanogrid.cli.inputs import input_fields
from nanogrid.cli.upload import LOCAL_BUCKET

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
JsonResultOption = Annotated[bool, typer.Option("--json", help="Print the ExecutionResult as JSON and nothing else.")]

RequestIdArgument = Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The id that `invoke --no-wait` printed.")]
FunctionArgument = Annotated[str, typer.Argument(metavar="FUNCTION", help="The functionId of its requests.")]

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The stack's folder: state, logs, Redis data, code cache. Two folders are two stacks. "
        "Default: $NANOGRID_LOCAL_DIR, else ~/.local/state/nanogrid/local.",
        show_default=False,
    ),
]

# -- a function and its input

SourceArgument = Annotated[
    str, typer.Argument(metavar="PATH_OR_S3_URL", help="A folder, a file, a zip or tar, or s3://bucket/key.")
]
RuntimeOption = Annotated[
    str | None,
    typer.Option("--runtime", "-r", help="python, cpp, or one of your own. Default: detected from the files."),
]
PayloadOption = Annotated[
    str | None,
    typer.Option("--payload", "-p", metavar="JSON|@FILE|-", help="The function's input; - reads it from stdin."),
]
StdinOption = Annotated[
    str | None, typer.Option(metavar="FILE|-", help="The function's stdin, byte for byte, instead of a payload.")
]
StdinTextOption = Annotated[str | None, typer.Option(metavar="TEXT", help="The same, given as text.")]
TimeoutOption = Annotated[int | None, typer.Option(help="Stop a run after this many milliseconds.")]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="NAME=VALUE|NAME=@FILE",
        help="A variable of the function: its value, or a file with it (@- is stdin). Repeatable.",
    ),
]
HandlerOption = Annotated[
    str | None, typer.Option(metavar="MODULE.FUNCTION", help="python: call this function with the payload.")
]
FunctionIdOption = Annotated[str | None, typer.Option(help="Name of the function. Default: name of the file.")]
BucketOption = Annotated[
    str | None, typer.Option(help=f"Bucket to upload to. Default on a local stack: {LOCAL_BUCKET}.")
]


def request_fields(
    chosen: dict[str, Any], env: list[str] | None, payload: str | None, stdin: str | None, stdin_text: str | None
) -> dict[str, Any]:
    """The fields of a request that were given: `chosen`, by wire name, without those that are None, and its input."""
    present = {name: value for name, value in chosen.items() if value is not None}
    return present | input_fields(env or [], payload, stdin, stdin_text)
