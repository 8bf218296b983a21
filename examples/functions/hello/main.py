"""The smallest function with input, output and a value: payload in, a line on stdout, JSON in the file NANOGRID_RESULT."""

import json
import os
import sys
from pathlib import Path

payload = json.loads(sys.stdin.read() or '"world"')
name = payload["name"] if isinstance(payload, dict) else payload
print(f"hello, {name}")

Path(os.environ["NANOGRID_RESULT"]).write_text(json.dumps({"greeted": name}))
