#!/usr/bin/env bash
# redis-py 8.1.0: each new connection reads the file METADATA of the installed package from disk, to tell Redis its version.
#
# The version is sent with CLIENT SETINFO and is known as `redis.__version__`, but each connection object searches sys.path
# for the distribution and parses its metadata with the email parser: 0.3 ms, and in a forked process about 2 MB of memory that
# was shared before. One `driver_info=DriverInfo()` for all clients avoids it.
#
# Seen:   5 connections: METADATA is read 5 times
#         5 connections with one driver_info: METADATA is read 0 times
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
"$folder/env/bin/python" - <<'PYTHON'
import sys

import redis
from redis.driver_info import DriverInfo

read = []
sys.addaudithook(lambda event, args: read.append(args[0]) if event == "open" and str(args[0]).endswith("METADATA") else None)

def reads(**options):
    """How often the file is read while a pool makes five connections. Nothing connects."""
    pool = redis.Redis.from_url("redis://127.0.0.1:9/0", **options).connection_pool
    read.clear()
    for _ in range(5):
        pool.make_connection()
    return len(read)

plain, given = reads(), reads(driver_info=DriverInfo())
print(f"5 connections: METADATA is read {plain} times")
print(f"5 connections with one driver_info: METADATA is read {given} times")
raise SystemExit(not (plain == 5 and given == 0))
PYTHON
