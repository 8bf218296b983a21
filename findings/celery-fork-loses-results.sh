#!/usr/bin/env bash
# Celery 5.7.0 with its Redis result backend: a producer that sends a task and then forks loses results, in the parent too.
#
# The backend is made at the first `delay()` and holds one subscription to Redis. After a fork both processes read from the
# same socket, and each takes answers that are the other's. `get()` of a task that has succeeded then waits until its
# timeout. Pre-loading web servers and multiprocessing fork like this. redis-py's own connections notice a fork; the
# subscription of the backend does not.
#
# Seen:   before the fork  4 of 4 results
#         6 children       18 of 24 results
#         the parent       3 of 4 results
# (how many are lost varies; the tasks themselves have all succeeded)
# Needs redis-server.
set -euo pipefail
folder=$(mktemp -d)
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "celery[redis]==5.7.0" redis==8.1.0 kombu==5.7.0
port=$("$folder/env/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
redis-server --bind 127.0.0.1 --port "$port" --dir "$folder" --save "" >/dev/null &
server=$!
worker=
trap 'kill $worker "$server" || true; wait || true; rm -rf "$folder"' EXIT
cat >"$folder/sums.py" <<PYTHON
import celery

app = celery.Celery("sums", broker="redis://127.0.0.1:$port/0", backend="redis://127.0.0.1:$port/1")


@app.task
def add(a, b):
    return a + b
PYTHON
cd "$folder"
env/bin/celery -A sums worker -P solo --loglevel ERROR >worker.log 2>&1 &
worker=$!
env/bin/python - <<'PYTHON'
import os
import sys

from celery.exceptions import TimeoutError
from sums import add, app


def results():
    """How many of four results arrive."""
    handles = [add.delay(number, 1) for number in range(4)]
    arrived = 0
    for number, handle in enumerate(handles):
        try:
            arrived += handle.get(timeout=4) == number + 1
        except TimeoutError:
            assert app.AsyncResult(handle.id).state == "SUCCESS"
    return arrived


add.delay(1, 1).get(timeout=60)  # the worker is up
before = results()
children = [os.fork() for _ in range(1)]
for _ in range(5):
    if children[-1]:
        children.append(os.fork())
if not children[-1]:
    os._exit(results())
parent = results()
total = sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
print(f"before the fork  {before} of 4 results")
print(f"6 children       {total} of 24 results")
print(f"the parent       {parent} of 4 results", flush=True)
os._exit(not (before == 4 and total + parent < 28))
PYTHON
