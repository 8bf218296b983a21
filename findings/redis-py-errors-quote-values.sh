#!/usr/bin/env bash
# redis-py 8.1.0: the error of a command in a pipeline quotes the whole command, with the values that were to be written.
#
# Outside a pipeline the same refusal is Redis' own sentence. In a pipeline redis-py puts "Command # N (...) of pipeline caused
# error:" before it, with every argument up to a length, so what was written ends up in logs and error trackers wherever the
# exception does. What compares an error's text by its beginning stops working, too.
#
# Seen:   alone         WRONGTYPE Operation against a key holding the wrong kind of value
#         in a pipeline Command # 2 (LPUSH name card=1234) of pipeline caused error: WRONGTYPE Operation ...
# Needs redis-server.
set -euo pipefail
folder=$(mktemp -d)
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
port=$("$folder/env/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
redis-server --bind 127.0.0.1 --port "$port" --dir "$folder" --save "" >/dev/null &
server=$!
trap 'kill "$server"; wait "$server" || true; rm -rf "$folder"' EXIT
"$folder/env/bin/python" - "$port" <<'PYTHON'
import sys
import time

import redis

client = redis.Redis(port=int(sys.argv[1]))
while True:
    try:
        client.set("name", "a string")
        break
    except redis.ConnectionError:
        time.sleep(0.05)


def refusal(act):
    try:
        act()
    except redis.ResponseError as error:
        return str(error)


with client.pipeline() as pipeline:
    pipeline.get("name")
    pipeline.lpush("name", "card=1234")
    piped = refusal(pipeline.execute)
alone = refusal(lambda: client.lpush("name", "card=1234"))
print(f"alone         {alone}\nin a pipeline {piped}")
raise SystemExit("1234" in alone or "card=1234" not in piped)
PYTHON
