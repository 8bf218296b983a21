"""A tour of NanoGrid on the local stack: one function of every kind, and its outcome.

    nanogrid up --detach && python examples/demo.py

Everything here is code that a producer would write. Exits with 0 if every row has the expected outcome.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from rich import box
from rich.console import Console
from rich.table import Table

FUNCTIONS = Path(__file__).parent / "functions"
BUCKET = "demo"
WAIT_S = 120.0
OUTPUT_WIDTH = 36
PHASES = ("queue", "fetch", "unpack", "acquire", "run", "collect", "store")
COLUMNS = ("", "request", "outcome", "code", "start", *PHASES, "MB used")
MOST_RUNS = 100
"""This many runs are more than enough for the tuner to know a function."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)


class Row(NamedTuple):
    """A row: its title, the call that sends the request and returns its id, and the expected result.

    `most_mb` is the largest memory limit that it may have been given.
    """

    title: str
    send: Callable[[], str]
    outcome: str
    contains: str
    most_mb: int = 512


def main() -> int:
    """Send all requests and show all results."""
    use_the_local_stack()
    from nanogrid import Client, execute_function  # after the environment is set, as in any producer
    from nanogrid.execution.code.packing import pack_folder
    from nanogrid.sqs.queues import resolve

    client, s3, sqs = Client(), boto3.client("s3"), boto3.client("sqs")
    s3.create_bucket(Bucket=BUCKET)

    def request(folder: str, runtime: str = "python", **fields: Any) -> dict[str, Any]:
        key, digest = client.upload(pack_folder(FUNCTIONS / folder), BUCKET)
        return {
            "functionId": folder,
            "runtime": runtime,
            "s3Bucket": BUCKET,
            "s3Key": key,
            "codeSha256": digest,
            **fields,
        }

    def bare_message() -> str:
        body = {**request("hello", payload={"name": "SQS"}), "requestId": f"bare-{uuid.uuid4()}"}
        sqs.send_message(QueueUrl=resolve("python", client.settings), MessageBody=json.dumps(body))
        return str(body["requestId"])

    film = f"frames-{uuid.uuid4().hex[:6]}"  # a function that the tuner does not know yet

    def frames(mib: int) -> str:
        return client.submit({**request("frames", payload=mib, memoryMb=512), "functionId": film})

    def frames_that_are_known() -> str:
        nanogrid("tuner", "set", film, "apply")
        for _ in range(MOST_RUNS):
            if client.wait(frames(20), WAIT_S).recommended_memory_mb is not None:
                break
        return frames(20)

    texts = ["the quick brown fox", "jumps over", "the lazy dog"]
    rows = [
        Row("python function", lambda: execute_function.delay(request("hello", payload={"name": "Celery"})).id, "SUCCEEDED", "hello, Celery"),
        Row("the same again", lambda: execute_function.delay(request("hello", payload={"name": "warm start"})).id, "SUCCEEDED", "hello, warm"),
        Row("C++ that compiles", lambda: client.submit(request("primes", "cpp", payload=100_000, timeoutMs=60_000)), "SUCCEEDED", "9592 primes"),
        Row("C++ again", lambda: client.submit(request("primes", "cpp", payload=100_000, timeoutMs=60_000)), "SUCCEEDED", "9592 primes"),
        Row("python handler", lambda: client.submit(request("shout", handler="texts.shout", payload={"text": "hello"})), "SUCCEEDED", "HELLO"),
        Row("fails", lambda: client.submit(request("failing")), "FAILED", "not enough"),
        Row("never ends", lambda: client.submit(request("endless", timeoutMs=1500)), "TIMED_OUT", "timeoutMs = 1500"),
        Row("eats all memory", lambda: client.submit(request("hungry", memoryMb=64)), "OUT_OF_MEMORY", "memoryMb = 64"),
        Row("bare message on SQS", bare_message, "SUCCEEDED", "hello, SQS"),
        Row("map and reduce", lambda: client.map_reduce(request("count_words"), texts, request("add_counts")), "SUCCEEDED", "the 2"),
        Row("known, asks for 512", frames_that_are_known, "SUCCEEDED", "20 MiB", most_mb=64),
        Row("needs 300, for once", lambda: frames(300), "SUCCEEDED", "300 MiB"),
    ]  # fmt: skip

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        right = column not in ("", "request", "outcome", "start")
        table.add_column(column, justify="right" if right else "left", no_wrap=True, min_width=max(1, len(column)))
    table.add_column("output", no_wrap=True)
    started = time.monotonic()
    unexpected = 0
    for row in rows:
        with console.status(f"waiting for: {row.title}"):
            result = client.wait(row.send(), WAIT_S)
        output = " ".join((result.stdout + result.stderr).split()) or json.dumps(result.value)
        as_expected = (
            result.outcome.value == row.outcome
            and row.contains in output + json.dumps(result.value)
            and (result.memory_limit_mb or 0) <= row.most_mb
        )
        unexpected += not as_expected
        start = "" if result.start_kind is None else result.start_kind.value
        used = (
            ""
            if result.peak_memory_bytes is None
            else f"{result.peak_memory_bytes / 2**20:.0f} of {result.memory_limit_mb}"
        )
        table.add_row(
            "✓" if as_expected else "✗",
            row.title,
            result.outcome.value,
            str(result.exit_code),
            start,
            *(milliseconds(getattr(result.phases, phase)) for phase in PHASES),
            used,
            output if len(output) <= OUTPUT_WIDTH else output[: OUTPUT_WIDTH - 1] + "…",
        )
    console.print(table)
    console.print(
        "queue to store: milliseconds. cold: a container made for this run; prewarmed: one that was ready; warm: used again.\n"
        "The tuner gave the last function, which asks for 512 MB, what ten runs had shown to be enough, and all 512 MB again when a run needed more."
    )
    took_s = time.monotonic() - started
    console.print(f"{len(rows) - unexpected} of {len(rows)} as expected, in {took_s:.1f} s.")
    console.print("Flower, with workers and tasks: " + flower_url())
    console.print(
        "The stack is still running. Try: .venv/bin/nanogrid invoke examples/functions/hello --payload '\"you\"'"
    )
    console.print("Stop it with: make down")
    return 1 if unexpected else 0


def milliseconds(value: float | None) -> str:
    """A phase for the table."""
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def use_the_local_stack() -> None:
    """Set the local stack's environment in this process, as `eval "$(nanogrid env)"` does in a shell."""
    answer = nanogrid("env", "--json")
    os.environ.update(json.loads(answer))


def flower_url() -> str:
    """The URL of the local stack's Flower."""
    parts = json.loads(nanogrid("status", "--json"))["parts"]
    return next((str(part["address"]) for part in parts if part["name"] == "flower"), "not running")


def nanogrid(*arguments: str) -> str:
    """The output of a `nanogrid` command in this program's environment."""
    command = [str(Path(sys.executable).with_name("nanogrid")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip() or f"{' '.join(command)} failed")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
