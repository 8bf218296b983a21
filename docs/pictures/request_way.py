"""The way of one request, from its producer to its result."""

from __future__ import annotations

from svg import Picture


def picture() -> Picture:
    """Producer, queue, worker and result from left to right, the container below the worker."""
    way = Picture(
        960,
        440,
        "A request goes from its producer through SQS to a worker, which runs it in a container and stores the result in Redis",
    )
    way.text(24, 32, "Your program", kind="title")
    way.box(24, 48, 168, 58, "execute_function", ".delay(request)")
    way.box(24, 122, 168, 58, "plain JSON", "from any language")

    way.text(244, 32, "SQS", kind="title")
    way.box(244, 84, 124, 58, "one queue", "for each runtime")
    way.box(244, 196, 124, 46, "dead letters", kind="warn")
    way.arrow((192, 77), (218, 77), (218, 104), (244, 104))
    way.arrow((192, 151), (218, 151), (218, 122), (244, 122))
    way.arrow((306, 142), (306, 196), label="5 receives", at=(314, 173), anchor="start")

    way.text(420, 32, "A Docker host", kind="title")
    way.group(420, 48, 392, 252, "Celery worker: a child runs one request at a time")
    steps = (
        ("1  claim", "request id"),
        ("2  fetch", "code, layers"),
        ("3  lease", "a container"),
        ("4  run", "within limits"),
        ("5  store", "first result stays"),
    )
    places = ((436, 84), (562, 84), (688, 84), (688, 176), (562, 176))
    for (x, y), step in zip(places, steps, strict=True):
        way.box(x, y, 108, 56, *step, kind="accent" if step[0].startswith("4") else "box")
    way.arrow((368, 113), (436, 113))
    way.arrow((544, 112), (562, 112))
    way.arrow((670, 112), (688, 112))
    way.arrow((742, 140), (742, 176))
    way.arrow((688, 204), (670, 204))
    way.text(436, 272, "code: S3 → cache on disk → container", kind="small")
    way.text(436, 289, "The message is deleted once the result is stored.", kind="small")

    way.box(
        436,
        332,
        360,
        72,
        "container",
        "no network · no capabilities · read-only root · limits",
        "stays warm for the function's next run",
        kind="accent",
    )
    way.arrow((770, 232), (770, 332))

    way.text(864, 32, "Redis", kind="title", anchor="middle")
    way.box(828, 148, 112, 58, "result", "by request id")
    way.box(828, 222, 112, 58, "results", "stream")
    way.arrow((616, 232), (616, 250), (820, 250), (820, 177), (828, 177))
    way.arrow((820, 250), (828, 250))
    way.box(24, 222, 168, 58, "your program", "wait · follow")
    way.arrow((884, 280), (884, 422), (108, 422), (108, 280))
    return way
