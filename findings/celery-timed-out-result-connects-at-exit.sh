#!/usr/bin/env bash
# Celery 5.7.0: a process whose `get(timeout=...)` has expired prints a traceback when it ends, and connects to Redis once more.
#
# A result that nobody has got stays subscribed. When the interpreter ends, `AsyncResult.__del__` takes the subscription back over a
# new connection, at a time when nothing can be imported any more: "Exception ignored in ... ImportError: sys.meta_path is
# None, Python is likely shutting down". The exit code is 0, and what the program printed is complete.
#
# Seen:   exit code 0
#         Exception ignored in: <function AsyncResult.__del__ ...>
#         ImportError: sys.meta_path is None, Python is likely shutting down
# Needs redis-server.
set -euo pipefail
folder=$(mktemp -d)
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "celery[redis]==5.7.0" redis==8.1.0 kombu==5.7.0
port=$("$folder/env/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
redis-server --bind 127.0.0.1 --port "$port" --dir "$folder" --save "" >/dev/null &
server=$!
trap 'kill "$server"; wait "$server" || true; rm -rf "$folder"' EXIT
cat >"$folder/waits.py" <<PYTHON
import celery

app = celery.Celery("waits", broker="redis://127.0.0.1:$port/0", backend="redis://127.0.0.1:$port/1")


@app.task
def later():
    pass


first = later.delay()  # nobody waits for this one
try:
    later.delay().get(timeout=1)  # no worker is up
except celery.exceptions.TimeoutError:
    print("timed out")
PYTHON
cd "$folder"
code=0
env/bin/python waits.py >out 2>err || code=$?
echo "exit code $code"
grep -E "Exception ignored|ImportError" err || true
grep -q "timed out" out
[ "$code" = 0 ] && grep -q "AsyncResult.__del__" err && grep -q "sys.meta_path is None" err
