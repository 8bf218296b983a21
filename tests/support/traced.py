"""A producer and a worker's child in one process, with SQS between them and OpenTelemetry's exporter in memory.

`python -m tests.support.traced` reads a request from stdin, takes NanoGrid's settings from the environment and prints the
spans as JSON. It is a separate program, because a process has one tracer provider.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from celery.worker.request import Request
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nanogrid.celery import app
from nanogrid.client import Client
from nanogrid.tasks import execute_function
from nanogrid.telemetry import tracing
from nanogrid.wire.names import EXECUTE


def main() -> None:
    """Send the request, receive it from its queue, run it, and return the spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    app.owner_address = Path(sys.argv[1])
    with trace.get_tracer("test").start_as_current_span("caller"):
        client = Client()
        client.submit(json.load(sys.stdin))
        execute_function.delay(json.loads(sys.argv[2]))
    tracing.begin(app.settings)  # as a worker does in each child
    app.set_current()
    for _ in range(2):
        take()
    print(json.dumps([shown(span) for span in exporter.get_finished_spans()]))


def take() -> None:
    """Process one message as a worker's child does."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        message = None
        while message is None:
            message = channel.basic_get("python", no_ack=False)
        request = Request(
            message,
            app=app,
            task=app.tasks[EXECUTE],
            hostname="w1@test",
            on_ack=lambda *_: message.ack(),
            on_reject=lambda *_: message.reject(),
            headers=message.headers,
            body=message.body,
            decoded=False,
            utc=True,
        )
        request.execute()


def shown(span: ReadableSpan) -> dict[str, Any]:
    """A span in the form that tests check."""
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace": context.trace_id,
        "id": context.span_id,
        "parent": None if span.parent is None else span.parent.span_id,
        "start": span.start_time,
        "end": span.end_time,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
    }


if __name__ == "__main__":
    main()
