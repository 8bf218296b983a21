#!/usr/bin/env bash
# redis-py 8.1.0: the answer to XREAD (and XREADGROUP) has three shapes, and `protocol=3` in a URL chooses the third one.
#
# By itself the client speaks RESP3 and answers a list of pairs, as under RESP2. `protocol=3`, which is what it speaks anyway,
# makes that a dict whose entries stand in one more list; `legacy_responses=False` a dict without it. So a program that
# works breaks by a word in its URL that changes nothing on the wire.
#
# Seen:   (nothing)               [['s', [('1-0', {'a': '1'})]]]
#         ?protocol=3             {'s': [[('1-0', {'a': '1'})]]}
#         ?legacy_responses=False {'s': [('1-0', {'a': '1'})]}
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
import sys, time

import redis

base = f"redis://127.0.0.1:{sys.argv[1]}/0"
for _ in range(100):
    try:
        redis.Redis.from_url(base).xadd("s", {"a": "1"}, id="1-0")
        break
    except redis.ConnectionError:
        time.sleep(0.05)
expected = {
    "": [["s", [("1-0", {"a": "1"})]]],
    "?protocol=3": {"s": [[("1-0", {"a": "1"})]]},
    "?legacy_responses=False": {"s": [("1-0", {"a": "1"})]},
}
seen = {
    options: redis.Redis.from_url(base + options, decode_responses=True).xread({"s": "0"}) for options in expected
}
for options, answer in seen.items():
    print(f"{options or '(nothing)':<23} {answer}")
raise SystemExit(seen != expected)
PYTHON
