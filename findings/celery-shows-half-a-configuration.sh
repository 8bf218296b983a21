#!/usr/bin/env bash
# Celery 5.7.0: while one thread computes an app's lazy configuration, other threads see it without its defaults.
#
# `app.add_defaults(function)` is computed at the first use of `app.conf`. Celery replaces the configuration first and adds the
# defaults to it afterwards, without a lock. A second thread in that moment finds no result backend and no broker: its
# `app.backend` is the one that is disabled ("No result backend is configured"), and what it sends goes to the broker
# of Celery's own defaults. Thread pools that send their first tasks at once are enough.
#
# Seen:   first thread   cache+memory:// memory://
#         second thread  None None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check celery==5.7.0 kombu==5.7.0
"$folder/env/bin/python" - <<'PYTHON'
import threading

from celery import Celery

app = Celery("lazy", set_as_current=False)
begun, seen = threading.Event(), threading.Event()


def defaults():
    begun.set()
    seen.wait(5)  # stands for reading a file, or an environment
    return {"result_backend": "cache+memory://", "broker_url": "memory://"}


app.add_defaults(defaults)
first = []
thread = threading.Thread(target=lambda: first.extend([app.conf.result_backend, app.conf.broker_url]))
thread.start()
begun.wait()
second = [app.conf.result_backend, app.conf.broker_url]
seen.set()
thread.join()
print("first thread  ", *first)
print("second thread ", *second)
raise SystemExit(first != ["cache+memory://", "memory://"] or second != [None, None])
PYTHON
