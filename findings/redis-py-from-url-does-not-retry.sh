#!/usr/bin/env bash
# redis-py 8.1.0: `Redis()` sends a command again up to 10 times when the connection breaks, `Redis.from_url()` never does.
#
# The same client class on the same server has two policies, by the way it was made. With the first one a command that
# is not idempotent (SET NX, INCR, XADD) may be carried out more than once after a connection that broke at its answer; with
# the second one a restart of the server is an error at once. Only an explicit `retry=` makes both alike.
#
# Seen:   Redis(): 10 retries
#         Redis.from_url(): no retry
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
"$folder/env/bin/python" - <<'PYTHON'
import socket, threading

import redis

def attempts(make):
    """How many connections a client makes for one command at a server that hangs up each time."""
    made = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        def hang_up():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                made.append(1)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        client = make(server.getsockname()[1])
        try:
            client.ping()
        except redis.ConnectionError:
            pass
        client.close()
        return len(made)

direct = attempts(lambda port: redis.Redis(port=port))
by_url = attempts(lambda port: redis.Redis.from_url(f"redis://127.0.0.1:{port}/0"))
print(f"Redis(): {direct - 1} retries")
print("Redis.from_url():", "no retry" if by_url == 1 else f"{by_url - 1} retries")
raise SystemExit(not (direct == 11 and by_url == 1))
PYTHON
