#!/usr/bin/env bash
# Celery 5.7.0: if a function given to `app.add_defaults` raises once, the app goes on without its defaults, and without an error.
#
# The function is taken off the list before it is called. The first use of `app.conf` raises what it raises; every later use
# finds a configuration of Celery's own defaults, although the cause may be gone by then. A program that reports the first error and
# tries again then sends to another broker, or has no result backend.
#
# Seen:   first use   ValueError: not yet
#         second use  None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check celery==5.7.0 kombu==5.7.0
"$folder/env/bin/python" - <<'PYTHON'
from celery import Celery

app = Celery("lazy", set_as_current=False)
calls = []


def defaults():
    calls.append(1)
    if len(calls) == 1:
        raise ValueError("not yet")
    return {"result_backend": "cache+memory://"}


app.add_defaults(defaults)
try:
    first = app.conf.result_backend
except ValueError as error:
    first = f"ValueError: {error}"
second = app.conf.result_backend
print(f"first use   {first}")
print(f"second use  {second}")
raise SystemExit(first != "ValueError: not yet" or second is not None or len(calls) != 1)
PYTHON
