#!/usr/bin/env bash
# Celery 5.7.0: a bound task that runs inside `.map()`, `.starmap()` or `.chunks()` has no request of its own.
#
# `task.map(items)` sends one message, whose task calls the other one in its own process, once for each item. In there
# `self.request.id` is None for every item, with the default headers, retries and delivery_info. What a task does by its id (a lock,
# a record, a check for a second delivery) is the same one for all items of everybody.
#
# Seen:   task.delay(1)        id given True
#         task.map([1, 2])     [[None, None], [None, None]]
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
cat >"$folder/ids.py" <<PYTHON
import celery

app = celery.Celery("ids", broker="redis://127.0.0.1:$port/0", backend="redis://127.0.0.1:$port/1")


@app.task(bind=True)
def own(self, item):
    return self.request.id, self.request.delivery_info
PYTHON
cd "$folder"
env/bin/celery -A ids worker -P solo --loglevel ERROR >worker.log 2>&1 &
worker=$!
env/bin/python - <<'PYTHON'
from ids import own

one = own.delay(1)
given = one.get(timeout=60)[0] == one.id
mapped = own.map([1, 2]).apply_async().get(timeout=60)
print(f"task.delay(1)        id given {given}")
print(f"task.map([1, 2])     {mapped}")
raise SystemExit(not given or mapped != [[None, None], [None, None]])
PYTHON
