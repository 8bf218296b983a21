#!/usr/bin/env bash
# kombu 5.7.0: what a callback of the event loop passes to call_soon runs only after the next event or timer.
#
# `Hub.call_soon` wakes the loop if another thread calls it. "The loop thread checks _ready before polling again", says the source, but a callback
# that was itself started by call_soon runs between that check and the poll. So the second callback waits until a descriptor or a timer
# ends the poll: for a second if there are none. `Hub.call_later(0, ...)` has no such wait.
#
# Seen:   call_soon from call_soon: 1000 ms   call_later(0) from call_soon: 0 ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check kombu==5.7.0
"$folder/env/bin/python" - <<'PYTHON'
import os
import time

from kombu.asynchronous import Hub


def waits_ms(name):
    hub = Hub()
    reading, writing = os.pipe()
    hub.add_reader(reading, print)  # a descriptor on which nothing arrives
    passed = []

    def first():
        begin = time.monotonic()
        then = lambda: passed.append((time.monotonic() - begin) * 1000)
        hub.call_soon(then) if name == "call_soon" else hub.call_later(0, then)

    hub.call_soon(first)
    while not passed:
        hub.run_once()
    hub.close()
    os.close(writing)
    return passed[0]


soon, later = waits_ms("call_soon"), waits_ms("call_later")
print(f"call_soon from call_soon: {soon:.0f} ms   call_later(0) from call_soon: {later:.0f} ms")
raise SystemExit(not (soon > 500 and later < 100))
PYTHON
