"""Prints an ExecutionResult: the function's output unchanged, and one line about the run."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

from nanogrid.cli import console

if TYPE_CHECKING:
    from nanogrid.result import ExecutionResult
    from nanogrid.results.stream.entry import StreamedResult

_COLOURS = {"SUCCEEDED": "green", "FAILED": "red"}
_VALUE_SHOWN = 500


def print_result(result: ExecutionResult, *, as_json: bool) -> None:
    """Copy the function's stdout and stderr byte by byte, and print a summary to stderr; or print only JSON to stdout."""
    if as_json:
        console.print_json(result.to_wire())
        return
    _write(sys.stdout, result.stdout)
    _write(sys.stderr, result.stderr)
    _print_summary(result)


def _write(stream: TextIO, text: str) -> None:
    """Write without translating line ends or encodings."""
    stream.flush()
    stream.buffer.write(text.encode("utf-8", "surrogatepass"))
    stream.buffer.flush()


def _print_summary(result: ExecutionResult) -> None:
    outcome = result.outcome.value
    console.say(
        ("" if _ends_line(result) else "\n", ""),
        (outcome, f"bold {_COLOURS.get(outcome, 'yellow')}"),
        ("".join(f" · {fact}" for fact in facts(result)), "dim"),
    )
    if result.value is not None:
        value = json.dumps(result.value)
        console.say((f"value: {value if len(value) <= _VALUE_SHOWN else value[:_VALUE_SHOWN] + ' ...'}", ""))


def print_line(found: StreamedResult) -> None:
    """Print one of many results on one line: when, which request, and its outcome."""
    from rich.text import Text

    at = datetime.fromtimestamp(found.stored_at_ms / 1000).astimezone()
    outcome = found.result.outcome.value
    line = Text(f"{at:%H:%M:%S}  {found.number:>6}  ", style="dim")
    line.append(f"{outcome:<13}", style=f"bold {_COLOURS.get(outcome, 'yellow')}")
    line.append(f"  {found.result.function_id}  {found.result.request_id}", style="default")
    line.append("".join(f" · {fact}" for fact in facts(found.result)), style="dim")
    out = console.stdout()
    out.print(line, soft_wrap=True)
    out.file.flush()


def facts(result: ExecutionResult) -> list[str]:
    """Short facts about a run."""
    found = [f"exit code {result.exit_code}", f"{result.duration_millis} ms"]
    if result.peak_memory_bytes is not None:
        limit = f" of {result.memory_limit_mb}" if result.memory_limit_mb else ""
        found.append(f"{result.peak_memory_bytes / 2**20:.0f}{limit} MiB")
    if result.start_kind is not None:
        found.append(f"{result.start_kind.value} start")
    if result.attempt > 1:
        found.append(f"attempt {result.attempt}")
    found += [f"{name} was cut" for name in ("stdout", "stderr") if getattr(result, f"{name}_truncated")]
    return found


def _ends_line(result: ExecutionResult) -> bool:
    """Whether the output ends with a line end, so that the summary starts on a new line."""
    last = result.stderr or (result.stdout if sys.stdout.isatty() else "")
    return not last or last.endswith("\n")
