"""Assembles the commands, and turns errors into sentences and exit codes."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from typing import Annotated

import typer

from nanogrid.cli import console
from nanogrid.cli.doctor import doctor
from nanogrid.cli.exit_codes import explain
from nanogrid.cli.invoke import invoke
from nanogrid.cli.pool import pool
from nanogrid.cli.results import cancel, result, results
from nanogrid.cli.stack import down, env, status, up
from nanogrid.cli.tune import tune
from nanogrid.cli.tuner import tuner

ABOUT = """Run functions on a queue: code from S3, requests over SQS, hardened Docker containers, results in Redis.

\b
Try it on this machine:
  nanogrid up --detach          start SQS, S3, Redis, a worker and Flower
  nanogrid invoke hello.py      run a file and print what it prints
  nanogrid invoke ./thumbs --payload '{"width": 80}' --timeout-ms 5000
  nanogrid tune hello.py        see how much memory to give it
  nanogrid status               see the condition of each part
  nanogrid pool --live          watch the workers' containers
  nanogrid tuner list           see what the tuner knows of each function
  nanogrid results --follow     see every result as it arrives
  nanogrid down                 stop the stack

Commands that need a deployment read it from the environment (AWS_* and NANOGRID_*). If the environment names none, they use
the local stack that runs on this machine, and print a note.

\b
Exit codes:
  0    success
  1    a problem was found (status, doctor), a request was not cancelled
       (cancel), nothing is known of a function (tuner), or it succeeded at
       no size (tune)
  2    wrong usage, or the command failed
  3    nothing runs (status, pool)
  130  interrupted
  invoke and result: the function's own; 124 timed out; 137 out of memory;
  125 not run
"""

OBJECTS = 50_000
"""New objects after which Python looks for garbage. Its own 700 cost a command that imports much a tenth of its time."""

app = typer.Typer(
    name="nanogrid",
    help=ABOUT,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from nanogrid import __version__

        typer.echo(f"nanogrid {__version__}")
        raise typer.Exit


@app.callback()
def nanogrid(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the whole command; the callback of `--version` ends it."""


for command in (up, down, status, env, invoke, result, results, cancel, tune, pool, doctor):
    app.command()(command)
app.add_typer(tuner, name="tuner")


def main() -> None:
    """Entry point. Expected errors are one sentence on stderr and exit code 2; anything else is a bug and shows its traceback."""
    gc.set_threshold(OBJECTS)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app(prog_name="nanogrid")
    except BrokenPipeError:
        # The reader of the output is gone (`| head`): there is nothing to print, and nowhere to print it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        console.complain(sentence)
        sys.exit(console.OWN_FAILURE)
